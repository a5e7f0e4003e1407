//! Entry point: arguments, one call.

mod ask;
mod classify;
mod client;
mod demo;
mod drain;
mod explain;
#[cfg(test)]
mod golden;
mod input;
mod kubernetes;
mod lines;
mod picture;
mod rbac;
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

use std::process::ExitCode;

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
    Drain(drain::Args),
    Explain(explain::Args),
    Rbac(rbac::Args),
    Replay(replay::Args),
    Simulate(simulate::Args),
    Status(status::Args),
    Top(top::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    match Args::parse().command {
        Command::Classify(args) => classify::run(&args)?,
        Command::Demo(args) => demo::run(&args)?,
        Command::Drain(args) => return drain::run(&args),
        Command::Explain(args) => explain::run(&args)?,
        Command::Rbac(args) => return rbac::run(&args),
        Command::Replay(args) => replay::run(&args)?,
        Command::Simulate(args) => simulate::run(&args)?,
        Command::Status(args) => status::run(&args)?,
        Command::Top(args) => top::run(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Args::command().debug_assert();
    }
}
