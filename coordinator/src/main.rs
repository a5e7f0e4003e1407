//! Entry point: arguments, logging, one call. Everything testable lives in the library.

use std::process::ExitCode;

use clap::Parser;
use ebb_coordinator::{Args, check_config, logging, run};

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if args.check_config {
        return Ok(check_config(&args));
    }
    logging::init(args.log, &args.log_level)?;
    run(args).await.map(|()| ExitCode::SUCCESS)
}
