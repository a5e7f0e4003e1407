//! Entry point: arguments, one call.

mod classify;
mod client;
mod demo;
#[cfg(test)]
mod golden;
mod input;
mod picture;
mod replay;
mod serve;
mod sheet;
mod show;
mod simulate;
mod tables;
mod terminal;
mod text;
mod top;

use clap::{Parser, Subcommand};

/// Ebb grows and shrinks the nodes of a Kubernetes cluster with the work on them.
#[derive(Parser)]
#[command(name = "ebb", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Classify(classify::Args),
    Demo(demo::Args),
    Replay(replay::Args),
    Simulate(simulate::Args),
    Top(top::Args),
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Classify(args) => classify::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Top(args) => top::run(&args),
    }
}
