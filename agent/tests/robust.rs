//! The agent where things go wrong: a crowd of cgroups, files that hold nonsense, a sudden death, a very long life.
//! The machines are folders of files, so that each of them can be had at will.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use ebb_agent::clock::Clock;
use ebb_agent::replay::Replay;
use ebb_agent::sampler::{Input, Sampler};
use ebb_core::classify::IdlePolicy;
use rustix::fs::{CWD, Mode, mkfifoat};
use tempfile::TempDir;

use common::{Serving, agent, samples, wait_for, write_tree};

const MIB: f64 = 1024.0 * 1024.0;
const POD: &str = "cgroup/kubepods/pod8f5d2c4e-1b7a-4f0e-9c3d-5a6b7c8d9e0f";
const PRESSURE: &str = "some avg10=0.00 avg60=0.00 avg300=0.00 total=7000000\n";

/// All that the agent reads of a machine without GPUs.
fn files() -> Vec<(String, &'static str)> {
    let stat = "cpu  10 2 30 400 5 6 7 8 0 0\ncpu0 10 2 30 400 5 6 7 8 0 0\nctxt 9111864\n";
    let memory = "MemTotal: 1000 kB\nMemFree: 200 kB\nInactive(file): 300 kB\nMemAvailable: 700 kB\n";
    let node = [
        ("cgroup/cgroup.controllers", "cpu memory\n"),
        ("proc/meminfo", memory),
        ("proc/pressure/cpu", PRESSURE),
        ("proc/pressure/io", PRESSURE),
        ("proc/pressure/irq", PRESSURE),
        ("proc/pressure/memory", PRESSURE),
        ("proc/schedstat", "cpu0 0 0 0 0 0 0 0 900 100 5\n"),
        ("proc/stat", stat),
    ];
    let pod = [
        ("cpu.pressure", PRESSURE),
        ("cpu.stat", "usage_usec 2000000\n"),
        ("io.pressure", PRESSURE),
        ("irq.pressure", PRESSURE),
        ("memory.current", "4096\n"),
        ("memory.events", "oom_kill 3\n"),
        ("memory.pressure", PRESSURE),
        ("memory.stat", "anon 1024\ninactive_file 1024\n"),
        ("memory.swap.current", "0\n"),
    ];
    let node = node.map(|(path, content)| (path.to_owned(), content));
    node.into_iter().chain(pod.map(|(name, content)| (format!("{POD}/{name}"), content))).collect()
}

struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        // In memory where it can be: disks take their time with ten thousand folders.
        let machine = Self(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap());
        fs::create_dir_all(machine.0.path().join("sys/bus")).unwrap();
        for (path, content) in files() {
            write_tree(machine.0.path(), &[(&path, content)]);
        }
        machine
    }

    /// Has `spoil` make something else of each file, which is told the good content.
    fn spoil(&self, spoil: Spoil) {
        for (path, content) in files() {
            let path = self.0.path().join(path);
            // What is held open is spoilt, too.
            fs::write(&path, "").unwrap();
            fs::remove_file(&path).unwrap();
            spoil(&path, content);
        }
    }

    fn mend(&self) {
        for (path, content) in files() {
            let path = self.0.path().join(path);
            if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) }.unwrap();
            fs::write(&path, content).unwrap();
        }
    }

    fn agent(&self, listen: &str) -> Command {
        let mut command = agent();
        command.args(["--standalone", "--log", "json", "--interval", "100ms", "--pod-interval", "1s"]);
        command.args(["--listen", listen]);
        for root in ["cgroup", "proc", "sys"] {
            command.arg(format!("--{root}-root")).arg(self.0.path().join(root));
        }
        command
    }
}

type Spoil = fn(&Path, &str);

/// Of the first series with this name, or with this name and these first labels.
fn value(page: &str, series: &str) -> Option<f64> {
    let is_meant =
        |name: &str| name.strip_prefix(series).is_some_and(|rest| rest.is_empty() || rest.starts_with(['{', ',']));
    samples(page).into_iter().find(|(name, _)| is_meant(name)).map(|(_, value)| value)
}

#[test]
fn a_crowd_of_cgroups_is_followed_up_to_the_bound_and_forgotten() {
    let machine = Machine::new();
    let mut command = machine.agent("127.0.0.1:0");
    command.args(["--max-cgroups", "3000"]);
    let serving = Serving::spawn(command);
    let page_with = |cgroups: f64, left_out: f64| {
        let is_so = |page: &str| {
            value(page, "ebb_cgroups") == Some(cgroups) && value(page, "ebb_cgroups_left_out") == Some(left_out)
        };
        wait_for("so many cgroups", || Some(serving.get("/metrics").2).filter(|page| is_so(page)))
    };
    let resident = |page: &str| value(page, "process_resident_memory_bytes").unwrap() / MIB;
    let before = page_with(3.0, 0.0);

    let [outside, inside] = ["crowd", "cgroup/crowd"].map(|path| machine.0.path().join(path));
    for number in 0..10_000 {
        let cgroup = outside.join(number.to_string());
        fs::create_dir_all(&cgroup).unwrap();
        fs::hard_link(machine.0.path().join(POD).join("cpu.stat"), cgroup.join("cpu.stat")).unwrap();
    }
    let after = [1, 2, 3, 4].map(|visit| {
        fs::rename(&outside, &inside).unwrap();
        let crowded = page_with(3000.0, 1.0);
        assert!(crowded.contains("{cgroup=\"/crowd/"));
        fs::rename(&inside, &outside).unwrap();
        let after = page_with(3.0, 0.0);
        assert!(!after.contains("crowd"), "{after}");
        let files = |page: &str| value(page, "process_open_fds").unwrap();
        assert!(files(&after) < files(&before) + 100.0, "{} files, then {}", files(&before), files(&after));
        assert_eq!(value(&after, "ebb_source_errors_total{source=\"cgroup\""), None, "to go away is no error");
        let [before, crowded, after] = [&before, &crowded, &after].map(|page| resident(page));
        eprintln!("visit {visit}: {before:.1} MiB resident before, {crowded:.1} with the crowd, {after:.1} after");
        after
    });
    // The allocator keeps some 5 MiB that the first two crowds gave back; later ones find room in it. A crowd that was
    // not given back would take over 1 MiB each time.
    assert!(after[3] < after[1] + 1.5, "{after:?} MiB");
}

#[test]
fn a_spoilt_file_costs_its_figures_and_nothing_else_until_it_is_good_again() {
    let ways: [(&str, Spoil); 6] = [
        ("cut off", |path, content| fs::write(path, &content[..content.len() / 2]).unwrap()),
        ("empty", |path, _| fs::write(path, "").unwrap()),
        ("binary", |path, _| fs::write(path, [0xff; 5000]).unwrap()),
        ("unreadable", |path, content| {
            fs::write(path, content).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o0)).unwrap();
        }),
        ("a folder", |path, _| fs::create_dir(path).unwrap()),
        ("a pipe", |path, _| mkfifoat(CWD, path, Mode::RUSR).unwrap()),
    ];
    thread::scope(|scope| {
        for (way, spoil) in ways {
            scope.spawn(move || check_spoilt(way, spoil));
        }
    });
}

const FIGURES: [(&str, f64); 5] = [
    ("ebb_node_context_switches_total", 9_111_864.0),
    ("ebb_node_memory_total_bytes", 1_024_000.0),
    ("ebb_pod_cpu_seconds_total", 2.0),
    ("ebb_pod_pressure_seconds_total", 7.0),
    ("ebb_pressure_seconds_total", 7.0),
];

fn check_spoilt(way: &str, spoil: Spoil) {
    let machine = Machine::new();
    machine.spoil(spoil);
    let serving = Serving::spawn(machine.agent("127.0.0.1:0"));
    let page = || serving.get("/metrics").2;
    let errors = |page: &str| {
        ["cgroup", "cpu", "memory", "pressure"].map(|source| {
            let series = format!("ebb_source_errors_total{{source=\"{source}\"");
            let counts = samples(page).into_iter().filter(|(name, _)| name.starts_with(&series));
            counts.map(|(_, count)| count).sum::<f64>()
        })
    };
    let mut before = [0.0; 4];
    // Spoilt from the beginning, then while it runs.
    for _ in 0..2 {
        let spoilt = wait_for(&format!("errors of {way}"), || {
            let counted = |page: &str| errors(page).iter().zip(before).all(|(now, before)| *now > before);
            Some(page()).filter(|page| counted(page))
        });
        for (series, _) in FIGURES {
            assert_eq!(value(&spoilt, series), None, "{way}: unknown, not made up\n{spoilt}");
        }
        machine.mend();
        let good = wait_for(&format!("figures after {way}"), || {
            let is_good = |page: &str| FIGURES.iter().all(|(series, figure)| value(page, series) == Some(*figure));
            Some(page()).filter(|page| is_good(page))
        });
        before = errors(&good);
        machine.spoil(spoil);
    }
}

#[test]
fn a_killed_agent_starts_again_at_once_on_the_same_port() {
    let machine = Machine::new();
    // No connection of another test has an end with this address.
    let mut serving = Serving::spawn(machine.agent("127.0.0.2:0"));
    let listen = serving.address.to_string();
    for _ in 0..3 {
        serving.wait_ready();
        // Its other end outlives the agent.
        let _under_way = std::net::TcpStream::connect(serving.address).unwrap();
        drop(serving);
        let begin = Instant::now();
        serving = Serving::spawn(machine.agent(&listen));
        assert_eq!(serving.get("/metrics").0, 200);
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    }
}

#[test]
fn a_week_takes_no_more_memory_than_its_first_tenth() {
    const WEEK: u64 = 7 * 24 * 3600;
    let recording = tempfile::NamedTempFile::new().unwrap();
    let minute = |minute: u64| {
        let cpu = if minute % (24 * 60) < 8 * 60 { 20 } else { 900 };
        format!("{{\"for\": \"1m\", \"utilization\": {{\"cpu\": {cpu}, \"gpu\": \"absent\"}}}}\n")
    };
    fs::write(&recording, (0..WEEK / 60).map(minute).collect::<String>()).unwrap();
    let replay = Replay::open(recording.path(), Duration::from_secs(1)).unwrap();
    let mut sampler = Sampler::new(Input::Replay(replay), Clock::start(), IdlePolicy::default());
    let begin = Instant::now();
    let mut classes = Vec::new();
    let mut watch = |seconds: Range<u64>| {
        for second in seconds {
            classes.push(sampler.sample(begin + Duration::from_secs(second)).verdict.class.name());
            classes.dedup();
        }
        resident()
    };
    let tenth = watch(0..WEEK / 10);
    let whole = watch(WEEK / 10..WEEK);
    eprintln!("resident: {tenth:.1} MiB after a tenth, {whole:.1} after the week");
    assert_eq!(classes, [&["unknown"], ["idle", "busy"].repeat(7).as_slice()].concat());
    // A word per sample would be 4 MiB.
    assert!(whole < tenth + 4.0, "{tenth} MiB, then {whole} MiB");
}

/// Of this process, in MiB.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}
