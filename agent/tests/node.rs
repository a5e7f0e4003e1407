//! The whole agent on a node: cgroups of pods as the kubelet makes them, under load, and its figures against the
//! kernel's own. Needs a machine of its own, with cgroup v2: `cargo xtask vm` runs it on many kernels.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use common::{Serving, wait_for};

/// What the CPU loads must have used before they are compared.
const ENOUGH: Duration = Duration::from_secs(1);
const MIB: f64 = 1024.0 * 1024.0;
/// Of the 16 MiB that each memory load takes: old kernels count in batches, and may owe some.
const HELD: f64 = 15.0 * MIB;

const BUSY: &str = "while :; do :; done";
const FORKS: &str = "while :; do /bin/true; done";
const ANON: &str = "held=$(head -c 16777216 /dev/zero | tr '\\0' x); kill -STOP $$";
/// Memory that is a file's, and lives in it: these machines have no disk.
const FILE: &str = "head -c 16777216 /dev/zero >/tmp/file-$$; kill -STOP $$";

#[test]
fn pods_of_the_systemd_driver_are_measured_as_the_kernel_does() {
    check(&Driver { of_pod: systemd_pod, of_container: |id| format!("cri-containerd-{id}.scope") });
}

#[test]
fn pods_of_the_cgroupfs_driver_are_measured_as_the_kernel_does() {
    check(&Driver { of_pod: cgroupfs_pod, of_container: str::to_owned });
}

fn check(driver: &Driver) {
    if std::env::var_os("EBB_TEST_VM").is_none() {
        return eprintln!("not run: changes the machine's cgroups; `cargo xtask vm` runs it on machines of its own");
    }
    let serving = Serving::start(&["--interval", "500ms", "--pod-interval", "1s"]);
    serving.wait_ready();
    // All after the agent: what it counts begins when it does.
    let burstable = Pod::new(driver, "burstable", 'b');
    let guaranteed = Pod::new(driver, "", 'a');
    let busy = burstable.container('1');
    let throttled = guaranteed.container('2');
    let forks = burstable.container('3');
    let memory = guaranteed.container('4');
    fs::write(throttled.path.join("cpu.max"), "20000 100000").unwrap();
    let held = [memory.load(ANON), memory.load(FILE)];
    wait_for("memory to be held", || memory.is_held().then_some(()));
    let loads = [busy.load(BUSY), busy.load(BUSY), busy.load(BUSY), throttled.load(BUSY), forks.load(FORKS)];
    wait_for("the loops to run", || (busy.cpu() > ENOUGH).then_some(()));
    wait_for("the limit to hold one back", || (throttled.stat("cpu.stat", "nr_throttled") > 3).then_some(()));
    freeze([&burstable, &guaranteed], true);

    let page = Page::after(&serving, &[&busy, &throttled, &forks, &memory]);
    for container in [&busy, &throttled, &forks] {
        let (cpu, scheduled) = (container.cpu(), page.seconds(container, "ebb_container_cpu_scheduled_seconds_total"));
        eprintln!("{}: cpu.stat {cpu:?}, by eBPF {scheduled:?}", container.id);
        // Interrupts are in eBPF's figure only; the kernel's leaves out what the emulator's clock makes of it.
        assert!(
            scheduled + SLACK > cpu.mul_f64(0.95) && scheduled < cpu.mul_f64(1.1) + SLACK,
            "{scheduled:?}, not {cpu:?}"
        );
    }
    let (waited, told) = (busy.waited(), page.seconds(&busy, "ebb_container_cpu_run_queue_seconds_total"));
    eprintln!("{}: schedstat waited {waited:?}, by eBPF {told:?}", busy.id);
    assert!(waited > ENOUGH / 10, "three loops on two CPUs waited only {waited:?}");
    // What a task waited on one CPU before it was moved to another's queue is in the kernel's figure only.
    assert!(told > waited.mul_f64(0.8) && told < waited.mul_f64(1.05) + SLACK, "{told:?}, not {waited:?}");
    let held_back = page.seconds(&throttled, "ebb_container_cpu_throttled_seconds_total");
    assert!(held_back > Duration::ZERO, "the limit held nothing back");

    for container in [&busy, &throttled, &memory] {
        let inactive = container.stat("memory.stat", "inactive_file");
        let expected = (container.number("memory.current") - inactive) as f64;
        let told = page.of(container, "ebb_container_memory_working_set_bytes");
        assert!((told - expected).abs() < MIB, "{told}, not {expected}");
    }
    assert!(page.of(&memory, "ebb_container_memory_anon_bytes") >= HELD);
    assert!(page.of(&memory, "ebb_container_memory_file_bytes") >= HELD);

    let pressure = [("uid", &*burstable.uid), ("resource", "cpu"), ("kind", "some")];
    assert!(page.value("ebb_pod_pressure_seconds_total", &pressure) > 0.0);
    for source in ["cgroup", "cpu", "ebpf", "memory", "pressure"] {
        assert_eq!(page.value("ebb_source_up", &[("source", source)]), 1.0, "{source}");
    }
    for reason in ["clock", "full"] {
        assert_eq!(page.value("ebb_bpf_dropped_total", &[("reason", reason)]), 0.0, "{reason}");
    }
    // A loop's child that is frozen would outlive it.
    freeze([&burstable, &guaranteed], false);
    drop((held, loads));
}

fn freeze(pods: [&Pod<'_>; 2], frozen: bool) {
    pods.into_iter().for_each(|pod| pod.freeze(frozen));
}

/// Of short runs, in which a few interrupts are many per cent.
const SLACK: Duration = Duration::from_millis(50);
const MILLISECOND: Duration = Duration::from_millis(1);

/// How a kubelet and a container runtime name cgroups.
struct Driver {
    of_pod: fn(class: &str, uid: &str) -> Vec<String>,
    of_container: fn(id: &str) -> String,
}

fn systemd_pod(class: &str, uid: &str) -> Vec<String> {
    let uid = uid.replace('-', "_");
    match class {
        "" => vec!["kubepods.slice".into(), format!("kubepods-pod{uid}.slice")],
        class => {
            vec!["kubepods.slice".into(), format!("kubepods-{class}.slice"), format!("kubepods-{class}-pod{uid}.slice")]
        }
    }
}

fn cgroupfs_pod(class: &str, uid: &str) -> Vec<String> {
    let folders = ["kubepods".into(), class.to_owned(), format!("pod{uid}")];
    folders.into_iter().filter(|folder| !folder.is_empty()).collect()
}

struct Pod<'a> {
    driver: &'a Driver,
    uid: String,
    /// From the outermost in.
    folders: Vec<PathBuf>,
}

impl<'a> Pod<'a> {
    fn new(driver: &'a Driver, class: &str, digit: char) -> Self {
        let digits = |count| digit.to_string().repeat(count);
        let uid = [8, 4, 4, 4, 12].map(digits).join("-");
        let mut path = PathBuf::from("/sys/fs/cgroup");
        let mut folders = Vec::new();
        for folder in (driver.of_pod)(class, &uid) {
            path.push(folder);
            if !path.is_dir() {
                fs::create_dir(&path).unwrap();
            }
            fs::write(path.join("cgroup.subtree_control"), "+cpu +memory").unwrap();
            folders.push(path.clone());
        }
        Self { driver, uid, folders }
    }

    fn path(&self) -> &Path {
        self.folders.last().unwrap()
    }

    fn container(&self, digit: char) -> Container<'_> {
        let id = digit.to_string().repeat(64);
        let path = self.path().join((self.driver.of_container)(&id));
        fs::create_dir(&path).unwrap();
        Container { id, path, pod: self }
    }

    /// Once it is frozen nothing in it runs any more, and all that ran has left its CPU.
    fn freeze(&self, frozen: bool) {
        let frozen = u8::from(frozen).to_string();
        fs::write(self.path().join("cgroup.freeze"), &frozen).unwrap();
        let (events, expected) = (self.path().join("cgroup.events"), format!("frozen {frozen}"));
        let is_so = || fs::read_to_string(&events).unwrap().contains(&expected).then_some(());
        wait_for("the pod to freeze or to thaw", is_so);
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        // Others may still be in the outer ones.
        self.folders.iter().rev().for_each(|folder| drop(fs::remove_dir(folder)));
    }
}

struct Container<'a> {
    id: String,
    path: PathBuf,
    pod: &'a Pod<'a>,
}

impl Container<'_> {
    fn load(&self, script: &str) -> Load {
        let script = format!("echo $$ >{}/cgroup.procs; {script}", self.path.display());
        Load(Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap())
    }

    fn number(&self, file: &str) -> u64 {
        fs::read_to_string(self.path.join(file)).unwrap().trim().parse().unwrap()
    }

    fn stat(&self, file: &str, key: &str) -> u64 {
        let text = fs::read_to_string(self.path.join(file)).unwrap();
        let number = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        number.unwrap_or_else(|| panic!("no {key} in {file}:\n{text}")).parse().unwrap()
    }

    fn cpu(&self) -> Duration {
        Duration::from_micros(self.stat("cpu.stat", "usage_usec"))
    }

    /// What its tasks waited for a CPU, by the second field of their `schedstat`.
    fn waited(&self) -> Duration {
        let tasks = fs::read_to_string(self.path.join("cgroup.procs")).unwrap();
        let waited = tasks.lines().map(|task| fs::read_to_string(format!("/proc/{task}/schedstat")).unwrap());
        waited.map(|fields| Duration::from_nanos(fields.split(' ').nth(1).unwrap().parse().unwrap())).sum()
    }

    fn is_held(&self) -> bool {
        let held = |kind| self.stat("memory.stat", kind) as f64 >= HELD;
        held("anon") && held("file")
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let emptied = || fs::remove_dir(&self.path).ok();
        if !thread::panicking() {
            wait_for("the container to be empty", emptied);
        }
    }
}

struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _status = self.0.wait();
    }
}

/// What the agent serves.
struct Page(Vec<(String, f64)>);

impl Page {
    /// With what the kernel says of these containers, whose tasks are frozen.
    fn after(serving: &Serving, containers: &[&Container<'_>]) -> Self {
        wait_for("a page with the latest figures", || {
            let page = Self(common::samples(&serving.get("/metrics").2));
            let is_latest = |container: &&Container<'_>| {
                let throttled = Duration::from_micros(container.stat("cpu.stat", "throttled_usec"));
                let told = |name| page.find(name, &[("container", &container.id)]).map(Duration::from_secs_f64);
                let is_told = |name, expected| told(name).is_some_and(|told| told.abs_diff(expected) < MILLISECOND);
                // The time for which one was held back is booked when it may go on, also while it is frozen.
                is_told("ebb_container_cpu_seconds_total", container.cpu())
                    && is_told("ebb_container_cpu_throttled_seconds_total", throttled)
            };
            containers.iter().all(is_latest).then_some(page)
        })
    }

    fn of(&self, container: &Container<'_>, name: &str) -> f64 {
        self.value(name, &[("container", &container.id), ("uid", &container.pod.uid)])
    }

    fn seconds(&self, container: &Container<'_>, name: &str) -> Duration {
        Duration::from_secs_f64(self.of(container, name))
    }

    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let series: Vec<&str> = self.0.iter().map(|(series, _)| &**series).filter(|it| it.starts_with(name)).collect();
        self.find(name, labels).unwrap_or_else(|| panic!("no {name} with {labels:?} in {series:#?}"))
    }

    fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let is_meant = |series: &str| {
            let is_labelled = |(label, value): &(&str, &str)| series.contains(&format!("{label}=\"{value}\""));
            series.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')) && labels.iter().all(is_labelled)
        };
        self.0.iter().find(|(series, _)| is_meant(series)).map(|(_, value)| *value)
    }
}
