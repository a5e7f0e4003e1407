//! `cargo xtask test`: every check of the project, in groups that can be run one by one.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::process::root;
use crate::{tools, vm};

/// Runs the project's tests and checks, all of them or the groups named.
///
/// `lab`, `manifests`, `drain`, `drain-chaos`, `burst`, `hpa`, `ray`, `scheduler` and `fidelity` bring up control planes on
/// loopback and build what those need (see `cargo xtask lab --help`); the first run on a machine takes about half an hour
/// for that, later ones minutes. `bpf`, `deny`, `fuzz`, `imds` and `ray` install tools into the cache, `vm` fetches kernels
/// into it; `rights`, `vm`, `prometheus` and `browser` install Debian packages. Every group runs, also after one has
/// failed; the last line counts.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to run; nothing: everything, in this order.
    #[arg(value_enum)]
    groups: Vec<Group>,
    /// How many pods `scheduler` compares
    #[arg(long, value_name = "COUNT", default_value_t = 300)]
    pods: u32,
    /// What makes them; the first of the seeds of `drain-chaos`
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// How many seeds `drain-chaos` tries, eight at a time
    #[arg(long, value_name = "COUNT", default_value_t = 24)]
    seeds: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// The formatting of the code.
    Fmt,
    /// The compiler's and clippy's warnings, as errors.
    Clippy,
    /// The tests next to the code and those of whole binaries that need nothing but this machine.
    Unit,
    /// The rules in simulated clusters under faults by chance: 4000 seeds, and all that ever failed.
    Soak,
    /// The committed kernel programs against a rebuild from source.
    Bpf,
    /// The agent in a container with the least rights.
    Rights,
    /// The agent on Debian's kernels, old and new, in virtual machines; counts kernels.
    Vm,
    /// The rendered manifests against the chart, and the rights they give against a real API server.
    Manifests,
    /// The harness itself: control plane, fake AWS, nodes; and our fake AWS beside moto's.
    Lab,
    /// What a drain does to what it finds, case by case; `ebb drain`; nodes that their group terminates, and whose system
    /// goes down.
    Drain,
    /// Drains under faults by chance, by seed: broken wires, killed agents.
    DrainChaos,
    /// The agent on Amazon's own mock of EC2's instance metadata service.
    Imds,
    /// One burst, up and down, through real parts; and which of several groups grows.
    Burst,
    /// metrics.k8s.io through the real aggregation layer, and the real HPA on it.
    Hpa,
    /// Real Ray: what waits in it becomes nodes before any pod waits, and what becomes of that when its head dies.
    Ray,
    /// The scheduling model against the real kube-scheduler, pod by pod.
    Scheduler,
    /// The simulator's scheduler and HPA against the real ones.
    Fidelity,
    /// The live page in a real Chromium.
    Browser,
    /// `ebb top` in a terminal, on a real agent.
    Top,
    /// The metrics under a real Prometheus and its linter.
    Prometheus,
    /// The readers of outside text, fuzzed for a minute.
    Fuzz,
    /// Licences, sources and duplicates of all dependencies.
    Deny,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let groups = if args.groups.is_empty() { Group::value_variants() } else { &args.groups };
    let mut total = Count::default();
    let mut failed = Vec::new();
    for group in groups {
        let possible = group.to_possible_value().context("no group is hidden")?;
        let name = possible.get_name().to_owned();
        println!("── {name}: {}", possible.get_help().map(ToString::to_string).unwrap_or_default());
        let start = Instant::now();
        let count = group.run(args).unwrap_or_else(|error| {
            println!("{error:#}");
            Count { passed: 0, failed: 1 }
        });
        println!("── {name}: {} passed, {} failed, {:.0?}\n", count.passed, count.failed, start.elapsed());
        if count.failed > 0 {
            failed.push(name);
        }
        total.passed += count.passed;
        total.failed += count.failed;
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Tests, or whole checks.
#[derive(Default)]
struct Count {
    passed: u32,
    failed: u32,
}

impl Group {
    fn run(self, args: &Args) -> Result<Count> {
        match self {
            Self::Fmt => check(&mut cargo(&["fmt", "--all", "--check"])).and_then(|root| {
                let bpf = check(cargo(&["fmt", "--check"]).current_dir(crate::process::root().join("ebpf")))?;
                Ok(Count { passed: root.passed + bpf.passed, failed: root.failed + bpf.failed })
            }),
            Self::Clippy => check(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])),
            Self::Unit => tests(&["--no-fail-fast"]),
            Self::Soak => check(&mut xtask(&["soak", "--seeds", "4000"])),
            Self::Bpf => check(&mut xtask(&["ebpf", "--check"])),
            Self::Rights => {
                tools::apt_install(&["runc"])?;
                tests(&["--package", "ebb-agent", "--test", "rights"])
            }
            Self::Vm => {
                let (passed, failed) = vm::boot_all(&vm::Args::default())?;
                Ok(Count { passed, failed })
            }
            Self::Manifests => {
                let rendered = check(&mut xtask(&["manifests", "--check"]))?;
                let rights = tests(&["--package", "ebb-tests", "--test", "manifests", "--test", "rights"])?;
                Ok(Count { passed: rendered.passed + rights.passed, failed: rendered.failed + rights.failed })
            }
            Self::Lab => tests(&["--package", "ebb-tests", "--test", "lab", "--test", "moto"]),
            Self::Drain => {
                // The real systemd-logind and a message bus for it.
                tools::apt_install(&["dbus-daemon", "systemd"])?;
                let files = ["drain_scenarios", "drain_suites", "drain_cli", "lifecycle", "shutdown"];
                let files = files.map(|file| ["--test", file]).concat();
                tests(&[&["--package", "ebb-tests"], &files[..], &["--", "--show-output"]].concat())
            }
            Self::DrainChaos => run_tests(
                cargo(&["test", "--package", "ebb-tests", "--test", "drain_chaos", "--", "--show-output"])
                    .env("EBB_TEST_SEEDS", args.seeds.to_string())
                    .env("EBB_TEST_SEED", args.seed.to_string()),
            ),
            Self::Imds => tests(&["--package", "ebb-tests", "--test", "imds"]),
            // What a test prints shows what was decided, and why.
            Self::Burst => {
                let files = ["--test", "burst", "--test", "groups", "--test", "buffers"];
                tests(&[&["--package", "ebb-tests"], &files[..], &["--", "--show-output"]].concat())
            }
            Self::Hpa => tests(&["--package", "ebb-tests", "--test", "hpa", "--", "--show-output"]),
            Self::Ray => {
                let files = ["--test", "ray", "--test", "ray_drain", "--test", "ray_drive"];
                tests(&[&["--package", "ebb-tests"], &files[..], &["--", "--show-output"]].concat())
            }
            Self::Browser => {
                tools::apt_install(&["chromium", "chromium-driver"])?;
                // It prints how smooth a thousand nodes are, which it can say only while nothing else runs.
                tests(&["--package", "ebb-tests", "--test", "browser", "--", "--show-output", "--test-threads=1"])
            }
            Self::Top => tests(&["--package", "ebb-tests", "--test", "top"]),
            Self::Prometheus => {
                tools::apt_install(&["prometheus"])?;
                tests(&["--package", "ebb-tests", "--test", "prometheus"])
            }
            Self::Fuzz => check(&mut xtask(&["fuzz", "--seconds", "60"])),
            Self::Scheduler => run_tests(
                cargo(&["test", "--package", "ebb-tests", "--test", "scheduler", "--", "--show-output"])
                    .env("EBB_TEST_PODS", args.pods.to_string())
                    .env("EBB_TEST_SEED", args.seed.to_string()),
            ),
            Self::Fidelity => tests(&[
                "--package",
                "ebb-tests",
                "--test",
                "fidelity_scheduler",
                "--test",
                "fidelity_hpa",
                "--",
                "--show-output",
            ]),
            // Advisories need a database from outside, which a closed network does not have.
            Self::Deny => check(
                Command::new(tools::cargo_deny()?).args(["check", "bans", "licenses", "sources"]).current_dir(root()),
            ),
        }
    }
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// This very program: the tests build xtask too, for the lab, and then its file is another one.
fn xtask(args: &[&str]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(args).current_dir(root());
    command
}

/// Runs a command that passes or fails as a whole.
fn check(command: &mut Command) -> Result<Count> {
    let passed = command.status().with_context(|| format!("start {}", command.get_program().display()))?.success();
    Ok(if passed { Count { passed: 1, failed: 0 } } else { Count { passed: 0, failed: 1 } })
}

fn tests(args: &[&str]) -> Result<Count> {
    run_tests(cargo(&["test"]).args(args))
}

/// Runs `cargo test`, shows what it prints, and adds up the results of its test binaries.
fn run_tests(command: &mut Command) -> Result<Count> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("start cargo test")?;
    let mut count = Count::default();
    for line in BufReader::new(child.stdout.take().expect("was asked for")).lines() {
        let line = line.context("read what cargo test prints")?;
        println!("{line}");
        if let Some((passed, failed)) = result(&line) {
            count.passed += passed;
            count.failed += failed;
        }
    }
    if !child.wait().context("wait for cargo test")?.success() && count.failed == 0 {
        // It did not compile, or a test binary ended before it could say how.
        count.failed = 1;
    }
    Ok(count)
}

/// `test result: ok. 5 passed; 1 failed; …` → (5, 1)
pub(crate) fn result(line: &str) -> Option<(u32, u32)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let (passed, rest) = counts.split_once(" passed; ")?;
    let (failed, _) = rest.split_once(" failed")?;
    Some((passed.parse().ok()?, failed.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_test_binaries_are_read() {
        let line = "test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s";
        assert_eq!(result(line), Some((5, 1)));
        assert_eq!(result("test time::tests::x ... ok"), None);
    }
}
