//! Entry point: arguments, logging, one call. Everything testable lives in the library.

use clap::Parser;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = fake_aws::Args::parse();
    tracing_subscriber::fmt().with_env_filter(EnvFilter::new("info")).with_ansi(false).init();
    fake_aws::run(args).await
}
