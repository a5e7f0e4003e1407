//! `cargo xtask bench`: figures, each beside a peer or a limit on the same machine in the same run.

pub(crate) mod agent;
mod lab;

use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::process::{capture, root, run as run_command};

/// Measures Ebb, and prints figures and their ratios to a peer or a limit in the same run.
///
/// Builds release binaries first: minutes, the first time. `agent` and `ebpf` need root. `agent` takes two
/// minutes and needs prometheus-node-exporter, which it installs from Debian's packages, and cAdvisor, which it builds
/// with Go; it makes cgroups, and for ten seconds it sets the sysctl kernel.bpf_stats_enabled. `ebpf` takes 40 seconds.
/// `burst` brings up a lab (see `cargo xtask lab --help`) and takes about five seconds a trial; `decide` does so, too, and
/// fills it first, which takes a minute for every 20 000 pods or so. `drain` brings up three, one after the other, and
/// takes about 25 minutes. `hpa` builds metrics-server with Go, brings up a lab, fills it as `decide` does, and takes some three
/// minutes a round. `planning` takes ten seconds, `ray` seven minutes with four labs, `sim` minutes. Nothing is left running. Progress goes to standard
/// error. A busy machine makes all figures worse. Aims are printed beside the figures; nothing fails when one is missed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure; nothing: everything.
    #[arg(value_enum)]
    groups: Vec<Group>,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// How long `agent` measures, idle and under load.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(5..=3600))]
    seconds: u64,
    /// How often `drain` and `hpa` measure. One call of kubectl that drains many nodes takes minutes: it is measured once, and
    /// for more than 100 nodes not at all.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How many nodes `drain` drains at once; each has an agent of 16 MiB.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    drained_nodes: u32,
    /// How often `burst` and `decide` measure.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=90))]
    trials: u32,
    /// The nodes that there are for `decide` and `hpa`.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    nodes: u32,
    /// The pods that there are for `decide` and `hpa`; 30 on each node fill it.
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(0..=300_000))]
    pods: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// CPU, memory and scrapes of the agent with 110 pods, idle and under load, beside node_exporter and cAdvisor.
    Agent,
    /// What the kernel program costs at each switch, over one that only reads the clock.
    Ebpf,
    /// From a pod that finds no node to `SetDesiredCapacity`, beside a loop that does nothing else.
    Burst,
    /// The coordinator in a cluster of size: memory, CPU, from a pod that finds no node to `SetDesiredCapacity`, and what it
    /// makes of 1000 pods at once.
    Decide,
    /// The agents' drain beside `kubectl drain`: one node with 110 pods, one with a PodDisruptionBudget, many at once; time
    /// over the pods' grace, requests by the API server's audit log.
    Drain,
    /// `metrics.k8s.io` beside metrics-server: from a change of load to a changed PodMetrics and to other replicas by the real
    /// HPA, and memory. Agents and kubelets are fakes, which tell the same load.
    Hpa,
    /// How long the rules take to find room for a burst, as it grows, and for pods that mean something for each other.
    Planning,
    /// From tasks in real Ray to nodes and back, level by level: ahead of Ray's own autoscaler and through its pending pods, and
    /// with Ebb setting the workers, beside what the flow says. EC2's boot is modelled.
    Ray,
    /// Virtual time a second of the simulator, as clusters grow.
    Sim,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// One line of the table.
struct Row {
    what: &'static str,
    unit: &'static str,
    ours: f64,
    /// The peer's or the limit's figure, and whose it is.
    theirs: Option<(f64, &'static str)>,
    aim: &'static str,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let groups = if args.groups.is_empty() { Group::value_variants() } else { &args.groups };
    let mut document = serde_json::Map::new();
    for group in groups {
        let machine = machine()?;
        let (name, rows) = match group {
            Group::Agent => ("agent", agent::measure(args.seconds)?),
            Group::Ebpf => ("ebpf", ebpf()?),
            Group::Burst => ("burst", lab::burst(args.trials)?),
            Group::Decide => ("decide", lab::decide(args)?),
            Group::Drain => ("drain", lab::drain(args)?),
            Group::Hpa => ("hpa", lab::hpa(args)?),
            Group::Planning => ("planning", planning()?),
            Group::Ray => ("ray", lab::ray()?),
            Group::Sim => ("sim", sim()?),
        };
        match args.output {
            Output::Table => print(name, &machine, &rows),
            Output::Json => {
                let figures: Value = rows.iter().map(Row::json).collect();
                document.insert(name.to_owned(), json!({"machine": machine, "figures": figures}));
            }
        }
    }
    if args.output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&document).context("write the figures as JSON")?);
    }
    Ok(())
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.theirs.map(|(theirs, _)| self.ours / theirs).filter(|ratio| ratio.is_finite())
    }

    fn json(&self) -> Value {
        let (theirs, of) = self.theirs.unzip();
        let Self { what, unit, ours, aim, .. } = self;
        json!({"what": what, "unit": unit, "ebb": ours, "other": theirs, "otherIs": of, "ratio": self.ratio(), "aim": aim})
    }
}

/// Where it was measured, and how busy that was before.
fn machine() -> Result<String> {
    let cpus = std::thread::available_parallelism().context("count the CPUs")?;
    let read = |file| std::fs::read_to_string(file).with_context(|| format!("read {file}"));
    let (kernel, load) = (read("/proc/sys/kernel/osrelease")?, read("/proc/loadavg")?);
    let load = load.split(' ').next().unwrap_or_default();
    Ok(format!("{cpus} CPUs, Linux {}, load average {load} before", kernel.trim()))
}

fn print(name: &str, machine: &str, rows: &[Row]) {
    println!("\n{name}: {machine}");
    println!("{:<46}{:>9}{:>9}{:>8}  {:<30}AIM", "", "EBB", "OTHER", "RATIO", "OTHER IS");
    for row in rows {
        let (theirs, of) = row.theirs.map_or((String::new(), ""), |(theirs, of)| (format!("{theirs:.2}"), of));
        let ratio = row.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let what = if row.unit.is_empty() { row.what.to_owned() } else { format!("{}, {}", row.what, row.unit) };
        let line = format!("{what:<46}{:>9.2}{theirs:>9}{ratio:>8}  {of:<30}{}", row.ours, row.aim);
        println!("{}", line.trim_end());
    }
}

/// What is measured is what is released.
fn build(words: &[&str]) -> Result<()> {
    eprintln!("building release binaries: {}", words.join(" "));
    let mut cargo = Command::new("cargo");
    run_command(cargo.args(["build", "--quiet", "--release", "--package"]).args(words).current_dir(root()))
}

fn ebpf() -> Result<Vec<Row>> {
    build(&["ebb-agent", "--example", "ebpf_cost"])?;
    eprintln!("nine rounds of two programs, two seconds each");
    let printed = capture(&mut Command::new(root().join("target/release/examples/ebpf_cost")))?;
    let lines: Vec<Value> =
        printed.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("read the rounds")?;
    let (last, rounds) = lines.split_last().context("the example printed nothing")?;
    let median = |name: &str| last["median"][name].as_f64().with_context(|| format!("find {name}"));
    let over: Vec<f64> = rounds.iter().filter_map(|round| round["over_ns"].as_f64()).collect();
    ensure!(!over.is_empty(), "the example printed no round");
    let limit = |of: fn(f64, f64) -> f64| over.iter().copied().reduce(of).expect("there is a round");
    let clock = Some((median("clock_ns_per_event")?, "reading the clock"));
    let nanoseconds = |name: &str| last[name].as_f64().with_context(|| format!("find {name}"));
    let system_call = Some((nanoseconds("system_call_ns")?, "a system call (getppid)"));
    Ok(vec![
        Row {
            what: "one switch, whole program",
            unit: "ns",
            ours: median("program_ns_per_event")?,
            theirs: clock,
            aim: "",
        },
        Row {
            what: "one switch, over the clock",
            unit: "ns",
            ours: median("over_ns")?,
            theirs: clock,
            aim: "below 150 ns",
        },
        Row { what: "the same, in the best round", unit: "ns", ours: limit(f64::min), theirs: None, aim: "" },
        Row { what: "the same, in the worst round", unit: "ns", ours: limit(f64::max), theirs: None, aim: "" },
        Row {
            what: "one launch that is counted",
            unit: "ns",
            ours: nanoseconds("launch_ns")?,
            theirs: system_call,
            aim: "",
        },
    ])
}

/// Each figure is one decision on a whole picture.
fn planning() -> Result<Vec<Row>> {
    const WORK: [&str; 16] = [
        "fill:5000:500",
        "fill:50000:5000",
        "near:10000:0",
        "apart:10000:0",
        "even:5000:500",
        "even:50000:5000",
        "types:1000:0",
        "types:10000:0",
        "types:100000:0",
        "shrink:8000:200",
        "shrink:80000:2000",
        "diverse:1000:0",
        "diverse:5000:0",
        "diverse:50000:0",
        "crowd:15000:500",
        "crowd:150000:5000",
    ];
    build(&["ebb-sim", "--example", "planning"])?;
    eprintln!("sixteen decisions, the best of three tries of each");
    let decide = |work: &[&str]| -> Result<Vec<Value>> {
        let printed = capture(Command::new(root().join("target/release/examples/planning")).args(work))?;
        printed.lines().map(|line| serde_json::from_str(line).context("read the decisions")).collect()
    };
    let mut best = [f64::INFINITY; WORK.len()];
    for _ in 0..3 {
        for (best, decision) in best.iter_mut().zip(decide(&WORK)?) {
            *best = best.min(decision["seconds"].as_f64().context("find how long one took")?);
        }
    }
    // In a process of its own: one that has grown before has memory to spare.
    let crowded = decide(&WORK[WORK.len() - 1..])?;
    let grown = crowded.first().and_then(|decision| decision["mib"].as_f64()).context("find how much it grew")?;
    let [
        fill_small,
        fill,
        near,
        apart,
        even_small,
        even,
        types_1000,
        types,
        types_100_000,
        shrink_small,
        shrink,
        diverse_1000,
        diverse,
        diverse_50_000,
        crowd_small,
        crowd,
    ] = best;
    let millis = |what, seconds: f64, theirs: Option<(f64, &'static str)>, aim| {
        let theirs = theirs.map(|(seconds, who)| (seconds * 1e3, who));
        Row { what, unit: "ms", ours: seconds * 1e3, theirs, aim }
    };
    let rate = |what, ours| Row { what, unit: "pods/s", ours, theirs: None, aim: "" };
    let growth = |what, small: f64, large: f64| {
        let ours = (large / small).log10();
        Row { what, unit: "exponent", ours, theirs: Some((1.0, "in proportion")), aim: "" }
    };
    Ok(vec![
        millis("50 000 pods onto 5 000 nodes", fill, None, "below 1 s"),
        growth("its growth, from a tenth of both", fill_small, fill),
        millis("10 000 pods that keep apart", apart, Some((near, "the same, keeping from nobody")), ""),
        millis("50 000 pods spread over 5 000 nodes", even, Some((fill, "not to be spread")), "below 1 s"),
        growth("its growth, from a tenth of both", even_small, even),
        rate("1 000 mixed pods, 400 groups", 1000.0 / types_1000),
        rate("10 000 mixed pods, 400 groups", 10_000.0 / types),
        rate("100 000 mixed pods, 400 groups", 100_000.0 / types_100_000),
        growth("its growth, from 10 000 pods", types, types_100_000),
        rate("1 000 pods of Karpenter's mix, 400 groups", 1000.0 / diverse_1000),
        rate("5 000 pods of Karpenter's mix, 400 groups", 5000.0 / diverse),
        rate("50 000 pods of Karpenter's mix, 400 groups", 50_000.0 / diverse_50_000),
        growth("its growth, from 5 000 pods", diverse, diverse_50_000),
        millis("emptying 1 199 of 2 000 nodes, 40 pods each", shrink, None, ""),
        growth("its growth, from a tenth of both", shrink_small, shrink),
        millis("one pod beside 150 000 on 5 000 full nodes", crowd, None, ""),
        growth("its growth, from a tenth of both", crowd_small, crowd),
        Row { what: "to know those nodes and pods", unit: "MiB", ours: grown, theirs: None, aim: "" },
    ])
}

/// An hour in which a tenth of a group's nodes come and go, at three sizes.
fn sim() -> Result<Vec<Row>> {
    const SIZES: [(&str, &str); 3] = [
        ("10", "virtual hours a second, 10 nodes"),
        ("1000", "virtual hours a second, 1000 nodes"),
        ("5000", "virtual hours a second, 5000 nodes"),
    ];
    build(&["ebb-sim", "--example", "scale"])?;
    let mut rows: Vec<Row> = Vec::new();
    let mut seconds = Vec::new();
    for (nodes, what) in SIZES {
        eprintln!("one virtual hour of {nodes} nodes");
        let printed = capture(Command::new(root().join("target/release/examples/scale")).arg(nodes))?;
        let run: Value = serde_json::from_str(&printed).context("read the run")?;
        let took = run["seconds"].as_f64().context("find how long it took")?;
        let theirs = rows.first().map(|first| (first.ours, "10 nodes"));
        rows.push(Row { what, unit: "1/s", ours: 1.0 / took, theirs, aim: "" });
        seconds.push(took);
    }
    let exponent = (seconds[2] / seconds[1]).ln() / 5_f64.ln();
    let what = "growth of time with nodes, 1000 to 5000";
    rows.push(Row { what, unit: "exponent", ours: exponent, theirs: Some((1.0, "in proportion")), aim: "" });
    Ok(rows)
}
