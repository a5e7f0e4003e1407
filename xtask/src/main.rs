//! Builds, labs, tests and measures Ebb: `cargo xtask <command> --help` says what each one will do.

mod apt;
mod bench;
mod ebpf;
mod fuzz;
mod lab;
mod manifests;
mod process;
mod soak;
mod test;
mod tools;
mod vm;

use clap::{Parser, Subcommand};

/// Builds, labs, tests and measures Ebb.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bench(bench::Args),
    #[command(hide = true)]
    BenchLoad(bench::agent::LoadArgs),
    Ebpf(ebpf::Args),
    Fuzz(fuzz::Args),
    #[command(subcommand)]
    Lab(lab::Command),
    Manifests(manifests::Args),
    Soak(soak::Args),
    Test(test::Args),
    Vm(vm::Args),
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::BenchLoad(args) => bench::agent::run_load(&args),
        Command::Ebpf(args) => ebpf::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Lab(command) => lab::run(command),
        Command::Manifests(args) => manifests::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Vm(args) => vm::run(&args),
    }
}
