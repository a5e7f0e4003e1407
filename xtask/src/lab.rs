//! `cargo xtask lab`: a real Kubernetes control plane on loopback, KWOK nodes, and a fake AWS behind them.
//! The command line and the life of a lab are here; what a lab is made of lies in the files beside.

mod aws;
mod build;
mod control_plane;
mod daemon;
mod pki;
mod registry;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::process;
use control_plane::Ports;

/// Start, stop and look at a lab: a real control plane on loopback with KWOK nodes and a fake AWS
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Build etcd, the Kubernetes control plane, kubectl and KWOK from Go modules into the cache
    ///
    /// Done once per version (about 8 minutes on 2 cores, then nothing); `up` does it when needed. Also builds the fake
    /// AWS. Prints the folder of the binaries.
    Build,
    /// Stop a lab by its recorded process ids and remove its data
    ///
    /// Each process gets SIGTERM, and SIGKILL after 10 s. A process that took over a recorded id is left alone.
    Down(Down),
    /// Print where ec2-metadata-mock is, Amazon's mock of the metadata service, which a test asks; builds it into the cache
    #[command(hide = true)]
    MetadataMock,
    /// Print where metrics-server is, beside which ours is measured; builds it into the cache
    #[command(hide = true)]
    MetricsServer,
    /// Print where moto_server is, another fake of AWS, which a test holds ours against; installs it into the cache
    #[command(hide = true)]
    Moto,
    /// Print where a Python with Ray is, whose clusters a test reads; installs it into the cache
    #[command(hide = true)]
    Ray,
    /// Show the processes of every lab on this machine with their memory and CPU time
    Status,
    /// Start a lab and print the environment to use it with
    ///
    /// Starts etcd, kube-apiserver, kube-scheduler, kube-controller-manager and KWOK on loopback, then the fake AWS with
    /// the groups given, and waits until each is ready. What is missing is built first. If a part fails, those already
    /// started are stopped and the error shows the last lines of the log of the one that failed.
    ///
    /// Use it with: eval "$(cargo xtask lab up)"
    Up(Up),
}

#[derive(clap::Args)]
pub(crate) struct Up {
    /// Folder for the lab's certificates, data and logs [default: lab/default in the cache]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// First of the ten ports that the lab uses [default: 17400, or the next block that is free]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1024..=65_526))]
    port_base: Option<u16>,
    /// Port of kube-apiserver [default: port base + 2]
    #[arg(long)]
    api_port: Option<u16>,
    /// Port of the fake AWS [default: port base + 6]
    #[arg(long)]
    aws_port: Option<u16>,
    /// An auto scaling group: name=cpu,min=2,max=10,desired=2,type=m5.xlarge,label=k=v,taint=k=v:NoSchedule
    ///
    /// Only the name is needed: min is 0, max 10, desired the min, the type m5.xlarge and the zone a unless given.
    /// `label` and `taint` can be given more than once; each instance's Node carries them. So can `zone`, and `type`:
    /// more than one makes a mixed instances policy, and so does market=spot.
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<aws::Group>,
    /// Time from the launch of an instance to its Node: 500ms, 30s, 2m
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    boot_delay: Duration,
    /// Time from the launch of an instance to InService
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    launch_delay: Duration,
    /// Leave out the fake AWS
    #[arg(long, conflicts_with_all = ["groups", "boot_delay", "launch_delay", "aws_port"])]
    no_aws: bool,
    /// One more flag for kube-apiserver, such as --feature-gates=X=false
    #[arg(long = "apiserver-arg", value_name = "FLAG", allow_hyphen_values = true)]
    apiserver_args: Vec<String>,
    /// One more flag for kube-controller-manager, such as `--horizontal-pod-autoscaler-sync-period=1s`; repeatable.
    #[arg(long = "controller-manager-arg", value_name = "FLAG", allow_hyphen_values = true)]
    controller_manager_args: Vec<String>,
    /// What to print: lines for a shell to evaluate, or one JSON object
    #[arg(short, long, value_enum, default_value_t = Output::Shell)]
    output: Output,
}

#[derive(clap::Args)]
pub(crate) struct Down {
    /// The lab's folder [default: lab/default in the cache]
    #[arg(long, conflicts_with = "all")]
    dir: Option<PathBuf>,
    /// Stop every lab on this machine
    #[arg(long)]
    all: bool,
    /// Leave the lab's log folder
    #[arg(long)]
    keep_logs: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Output {
    Json,
    Shell,
}

/// What others need to use a lab: printed by `up -o json`, and kept in the lab's folder as `lab.json`.
#[derive(Deserialize, Serialize)]
struct Lab {
    dir: PathBuf,
    kubeconfig: PathBuf,
    server: String,
    ca_file: PathBuf,
    bin: PathBuf,
    aws_endpoint: Option<String>,
    aws_log: Option<PathBuf>,
    region: String,
    port_base: u16,
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Build => {
            let bin = build::binaries()?;
            aws::program()?;
            println!("{}", bin.display());
            Ok(())
        }
        Command::Down(args) => down(&args),
        Command::MetadataMock => {
            println!("{}", crate::tools::ec2_metadata_mock()?.display());
            Ok(())
        }
        Command::Moto => {
            println!("{}", crate::tools::moto_server()?.display());
            Ok(())
        }
        Command::MetricsServer => {
            println!("{}", crate::tools::metrics_server()?.display());
            Ok(())
        }
        Command::Ray => {
            println!("{}", crate::tools::ray()?.display());
            Ok(())
        }
        Command::Status => status(),
        Command::Up(args) => up(&args),
    }
}

fn up(args: &Up) -> Result<()> {
    let bin = build::binaries()?;
    let aws = if args.no_aws { None } else { Some(aws::program()?) };
    let dir = lab_dir(args.dir.as_deref())?;
    if Lab::read(&dir).is_ok() {
        if daemon::list(&dir)?.iter().any(daemon::Daemon::is_alive) {
            bail!("a lab is up in {}: stop it first (cargo xtask lab down) or name another --dir", dir.display());
        }
        tear_down(&dir, false)?; // Left behind by a machine or an `up` that was killed.
    }
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let dir = dir.canonicalize().with_context(|| format!("resolve {}", dir.display()))?;
    let base = registry::reserve(&dir, args.port_base)?;
    let mut ports = Ports::from_base(base);
    ports.api = args.api_port.unwrap_or(ports.api);
    ports.aws = args.aws_port.unwrap_or(ports.aws);

    let lab = Lab {
        kubeconfig: dir.join("kubeconfig"),
        server: format!("https://127.0.0.1:{}", ports.api),
        ca_file: dir.join("pki/ca.crt"),
        bin,
        aws_endpoint: aws.is_some().then(|| format!("http://127.0.0.1:{}", ports.aws)),
        aws_log: aws.is_some().then(|| dir.join("log/aws-calls.jsonl")),
        region: aws::REGION.to_owned(),
        port_base: base,
        dir,
    };
    let started = start(&lab, &ports, args, aws.as_deref());
    if let Err(error) = started {
        tear_down(&lab.dir, true).context("stop what was started")?;
        return Err(error.context(format!("start the lab in {}; logs are kept in its log folder", lab.dir.display())));
    }
    lab.print(args.output)
}

fn start(lab: &Lab, ports: &Ports, args: &Up, aws: Option<&Path>) -> Result<()> {
    let begun = Instant::now();
    // Written first: whatever happens next, `down` finds the lab.
    fs::write(lab.dir.join("lab.json"), serde_json::to_vec_pretty(lab)?).context("write lab.json")?;
    for folder in ["conf", "log", "pid", "pki"] {
        fs::create_dir_all(lab.dir.join(folder)).with_context(|| format!("create the folder {folder}"))?;
    }
    pki::write(&lab.dir, &lab.server)?;
    control_plane::start(lab, ports, &args.apiserver_args, &args.controller_manager_args)?;
    if let Some(program) = aws {
        aws::start(lab, ports.aws, program, args)?;
    }
    eprintln!("lab up in {:.1} s: {}", begun.elapsed().as_secs_f64(), lab.dir.display());
    Ok(())
}

fn down(args: &Down) -> Result<()> {
    if args.all {
        return registry::labs()?.iter().try_for_each(|dir| tear_down(dir, args.keep_logs));
    }
    let dir = lab_dir(args.dir.as_deref())?;
    Lab::read(&dir)?;
    tear_down(&dir, args.keep_logs)
}

/// Stops a lab and removes what it wrote, and nothing else: the folder may have held other things before.
fn tear_down(dir: &Path, keep_logs: bool) -> Result<()> {
    daemon::stop_all(dir)?;
    registry::release(dir)?;
    for folder in ["conf", "etcd", "pid", "pki"].into_iter().chain((!keep_logs).then_some("log")) {
        ignore_missing(fs::remove_dir_all(dir.join(folder))).with_context(|| format!("remove the folder {folder}"))?;
    }
    for file in ["kubeconfig", "lab.json"] {
        ignore_missing(fs::remove_file(dir.join(file))).with_context(|| format!("remove {file}"))?;
    }
    let _not_empty_is_fine = fs::remove_dir(dir);
    Ok(())
}

fn status() -> Result<()> {
    let labs = registry::labs()?;
    if labs.is_empty() {
        println!("no lab is up");
    }
    for dir in labs {
        println!("{}", dir.display());
        println!("  {:<26} {:>8} {:>9} {:>10} {:>8}", "process", "pid", "rss MiB", "peak MiB", "cpu s");
        for daemon in daemon::list(&dir)? {
            match daemon.usage() {
                Some(usage) => println!(
                    "  {:<26} {:>8} {:>9.1} {:>10.1} {:>8.2}",
                    daemon.name, daemon.pid, usage.rss_mib, usage.peak_mib, usage.cpu_seconds
                ),
                None => println!("  {:<26} {:>8} not running", daemon.name, daemon.pid),
            }
        }
    }
    Ok(())
}

fn lab_dir(asked: Option<&Path>) -> Result<PathBuf> {
    let dir = match asked {
        Some(dir) => dir.to_owned(),
        None => process::cache()?.join("lab/default"),
    };
    std::path::absolute(&dir).with_context(|| format!("resolve {}", dir.display()))
}

impl Lab {
    fn read(dir: &Path) -> Result<Self> {
        let text = fs::read(dir.join("lab.json"))
            .with_context(|| format!("no lab in {}; cargo xtask lab status names those there are", dir.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("read lab.json in {}", dir.display()))
    }

    fn print(&self, output: Output) -> Result<()> {
        match output {
            Output::Json => println!("{}", serde_json::to_string(self)?),
            Output::Shell => {
                println!("export KUBECONFIG='{}'", self.kubeconfig.display());
                println!("export PATH='{}':\"$PATH\"", self.bin.display());
                if let Some(endpoint) = &self.aws_endpoint {
                    println!("export AWS_ENDPOINT_URL={endpoint}");
                    println!("export AWS_REGION={0} AWS_DEFAULT_REGION={0}", self.region);
                    println!("export AWS_ACCESS_KEY_ID=lab AWS_SECRET_ACCESS_KEY=lab AWS_EC2_METADATA_DISABLED=true");
                }
            }
        }
        Ok(())
    }

    /// Asks a server with kubectl, as the admin; whether it answered 2xx.
    fn kubectl_succeeds(&self, words: &[&str]) -> bool {
        let mut kubectl = std::process::Command::new(self.bin.join("kubectl"));
        process::capture(kubectl.arg("--kubeconfig").arg(&self.kubeconfig).args(words)).is_ok()
    }
}

fn ignore_missing(result: std::io::Result<()>) -> std::io::Result<()> {
    result.or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Reads `500ms`, `30s` or `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "write it like 500ms, 30s or 2m".to_owned())?;
    match &text[digits.len()..] {
        "m" => Ok(Duration::from_secs(number * 60)),
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        unit => Err(format!("unknown unit {unit:?}: use ms, s or m")),
    }
}
