//! Entry point: arguments, one call.

mod ask;
mod classify;
mod client;
mod demo;
mod explain;
#[cfg(test)]
mod golden;
mod input;
mod lines;
mod picture;
mod replay;
mod serve;
mod sheet;
mod show;
mod simulate;
mod status;
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
    Explain(explain::Args),
    Replay(replay::Args),
    Simulate(simulate::Args),
    Status(status::Args),
    Top(top::Args),
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Classify(args) => classify::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Top(args) => top::run(&args),
    }
}
