//! Entry point: arguments, logging, one call. Everything testable lives in the library.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    let args = ebb_agent::Args::parse();
    let log = ebb_agent::logging::init(args.log, args.log_level.clone());
    ebb_agent::run(args, log)
}
