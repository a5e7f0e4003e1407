//! The whole binary on nodes with GPUs, which the fake NVML of `tests/fake-nvml` plays by a script.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use common::{Serving, agent, assert_documented, run, samples, write_tree};

/// Beside the tests, where cargo puts what they depend on.
fn library() -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name("libfake_nvml.so");
    assert!(path.exists(), "cargo builds the fake as {}, since the tests depend on it", path.display());
    path
}

/// A machine with GPUs, and what the agent sees of it.
struct Machine {
    root: TempDir,
    script: Value,
}

impl Machine {
    /// As in `tests/fake-nvml/scenarios`.
    fn of(scenario: &str) -> Self {
        let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fake-nvml/scenarios");
        let text = std::fs::read_to_string(scenarios.join(format!("{scenario}.json"))).unwrap();
        let machine = Self { root: TempDir::new().unwrap(), script: serde_json::from_str(&text).unwrap() };
        write_tree(machine.root.path(), &[("kmsg", ""), ("sys/bus/pci/devices/none", "")]);
        std::fs::remove_file(machine.at("sys/bus/pci/devices/none")).unwrap();
        machine.write();
        machine
    }

    fn at(&self, name: &str) -> String {
        self.root.path().join(name).to_str().unwrap().to_owned()
    }

    /// In one step: the fake reads the script while it is changed.
    fn write(&self) {
        std::fs::write(self.at("script.new"), self.script.to_string()).unwrap();
        std::fs::rename(self.at("script.new"), self.at("script")).unwrap();
    }

    fn change(&mut self, pointer: &str, value: Value) {
        match self.script.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => {
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                self.script.pointer_mut(parent).unwrap()[key] = value;
            }
        }
        self.write();
    }

    /// A GPU on the PCI bus, so that one is looked for without being told.
    fn put_on_bus(&self, address: &str) {
        let device = format!("sys/bus/pci/devices/{address}");
        let files = [(format!("{device}/vendor"), "0x10de\n"), (format!("{device}/class"), "0x030200\n")];
        write_tree(self.root.path(), &files.each_ref().map(|(path, text)| (path.as_str(), *text)));
    }

    fn log(&self, line: &str) {
        let mut log = std::fs::OpenOptions::new().append(true).open(self.at("kmsg")).unwrap();
        writeln!(log, "{line}").unwrap();
    }

    fn start_with(&self, library: &str, more: &[&str]) -> Serving {
        let mut command = agent();
        command.env("FAKE_NVML_SCRIPT", self.at("script"));
        let (sys, kmsg) = (self.at("sys"), self.at("kmsg"));
        let mut args = vec!["--nvml-library", library, "--sys-root", &sys, "--kmsg", &kmsg];
        if !more.contains(&"--interval") {
            args.extend(["--interval", "100ms"]);
        }
        let serving = Serving::start_as(command, &[&args, more].concat());
        serving.wait_ready();
        serving
    }

    fn start(&self, more: &[&str]) -> Serving {
        self.start_with(library().to_str().unwrap(), more)
    }
}

/// What a page says at one moment.
struct Page(Vec<(String, f64)>);

impl Page {
    fn of(serving: &Serving) -> Self {
        Self(samples(&serving.get("/metrics").2))
    }

    /// The samples of the family whose labels hold all of these.
    fn all(&self, family: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let wanted = |sample: &&(String, f64)| {
            let (name, rest) = sample.0.split_once('{').unwrap_or((&sample.0, ""));
            name == family && labels.iter().all(|label| rest.contains(label.as_str()))
        };
        self.0.iter().filter(wanted).map(|(_, value)| *value).collect()
    }

    fn one(&self, family: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let found = self.all(family, labels);
        assert!(found.len() <= 1, "{family}{labels:?}: {found:?}");
        found.first().copied()
    }

    fn is_up(&self) -> bool {
        self.one("ebb_source_up", &[("source", "gpu")]) == Some(1.0)
    }
}

/// Waits until the page is so.
fn wait_until(serving: &Serving, what: &str, so: impl Fn(&Page) -> bool) -> Page {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let page = Page::of(serving);
        if so(&page) {
            return page;
        }
        if Instant::now() > deadline {
            let gpu: Vec<_> = page.0.iter().filter(|(name, _)| name.contains("gpu")).collect();
            panic!("not within 20 s: {what}; {gpu:#?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn eight_gpus_are_shown_with_all_their_figures() {
    let machine = Machine::of("8xh100");
    let serving = machine.start(&[]);
    let page = wait_until(&serving, "activity by GPM", |page| page.all("ebb_gpu_sm_active_ratio", &[]).len() == 8);
    assert_documented(&serving.get("/metrics").2);
    assert_eq!(
        page.all("ebb_gpu_info", &[("model", "NVIDIA H100 80GB HBM3"), ("driver_version", "580.95.05")]).len(),
        8
    );
    let first = [("gpu_uuid", "GPU-8f0d3c1a-52e4-4b57-9d0e-6f1c0a9b7e00"), ("gpu", "0")];
    let check = |family, more: &[(&str, &str)], expected| {
        assert_eq!(page.one(family, &[&first, more].concat()), Some(expected), "{family}{more:?}");
    };
    check("ebb_gpu_info", &[("pci_bus_id", "00000000:08:00.0"), ("mig_profile", "")], 1.0);
    check("ebb_gpu_sm_active_ratio", &[], 0.813);
    check("ebb_gpu_sm_occupancy_ratio", &[], 0.435);
    check("ebb_gpu_tensor_active_ratio", &[], 0.38);
    check("ebb_gpu_dram_active_ratio", &[], 0.555);
    check("ebb_gpu_memory_busy_ratio", &[], 0.61);
    check("ebb_gpu_memory_used_bytes", &[], f64::from(70_000) * 1_048_576.0);
    check("ebb_gpu_energy_joules_total", &[], 987_654_321.0);
    check("ebb_gpu_temperature_celsius", &[("sensor", "memory")], 52.0);
    check("ebb_gpu_clock_hertz", &[("clock", "sm")], 1.755e9);
    check("ebb_gpu_throttled", &[("reason", "sw_power_cap")], 1.0);
    check("ebb_gpu_throttled", &[("reason", "hw_slowdown")], 0.0);
    check("ebb_gpu_throttle_seconds_total", &[("reason", "power")], 1.5);
    check("ebb_gpu_ecc_errors_total", &[("type", "corrected"), ("scope", "aggregate")], 3.0);
    check("ebb_gpu_remapped_rows", &[("cause", "uncorrected")], 0.0);
    check("ebb_gpu_row_remap_failure", &[], 0.0);
    check("ebb_gpu_nvlink_errors_total", &[("kind", "replay")], 0.0);
    check("ebb_gpu_recovery_action", &[("action", "none")], 1.0);
    check("ebb_gpu_health", &[("verdict", "healthy")], 1.0);
    let [busy, max] = ["ebb_gpu_busy_ratio", "ebb_gpu_busy_max_ratio"].map(|family| page.one(family, &first).unwrap());
    assert!(0.88 <= busy && busy <= max && max <= 1.0, "{busy} {max}");
    assert!(page.one("ebb_node_utilization_ratio", &[("signal", "gpu")]).unwrap() >= 0.88);
}

#[test]
fn what_an_old_gpu_does_not_have_is_not_there() {
    let machine = Machine::of("t4");
    let serving = machine.start(&[]);
    let page = wait_until(&serving, "busy", |page| page.one("ebb_gpu_busy_max_ratio", &[]) == Some(0.7));
    for family in [
        "ebb_gpu_sm_active_ratio",
        "ebb_gpu_tensor_active_ratio",
        "ebb_gpu_remapped_rows",
        "ebb_gpu_row_remap_failure",
        "ebb_gpu_nvlink_errors_total",
        "ebb_gpu_recovery_action",
    ] {
        assert!(page.all(family, &[]).is_empty(), "{family}");
    }
    assert!(page.all("ebb_gpu_temperature_celsius", &[("sensor", "memory")]).is_empty());
    assert_eq!(page.one("ebb_gpu_power_watts", &[]), Some(31.5));
    assert!(page.all("ebb_source_errors_total", &[("source", "gpu")]).is_empty(), "not supported is no error");
}

#[test]
fn each_reading_asks_only_what_is_cheap_and_there() {
    let mut machine = Machine::of("t4");
    let log = machine.at("calls");
    machine.change("/log", json!(log));
    let serving = machine.start(&[]);
    let calls = |function: &str| {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.lines().filter(|call| *call == function).count()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while calls("nvmlDeviceGetPowerUsage") < 10 {
        assert!(Instant::now() < deadline, "not ten readings within 20 s");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(serving);
    let check = |function: &str, most| assert!(calls(function) <= most, "{function}: {}", calls(function));
    // Facts, once.
    check("nvmlDeviceGetName", 1);
    check("nvmlDeviceGetPciInfo_v3", 1);
    check("nvmlGpmQueryDeviceSupport", 1);
    // What this GPU does not have: once each, some together.
    check("nvmlGpmSampleGet", 0);
    check("nvmlDeviceGetFieldValues", 2);
    check("nvmlDeviceGetMigDeviceHandleByIndex", 0);
    // What changes slowly: every ten seconds, for the beginning and perhaps once more.
    check("nvmlDeviceGetTotalEccErrors", 8);
    check("nvmlDeviceGetViolationStatus", 8);
}

#[test]
fn pods_that_share_a_gpu_in_time_slices_are_told_apart() {
    let machine = Machine::of("time-slicing");
    let (first, second) = ("8f5d2c4e-1b7a-4f0e-9c3d-5a6b7c8d9e0f", "0a1b2c3d-1b7a-4f0e-9c3d-5a6b7c8d9e0f");
    let id = "a".repeat(64);
    let cgroup = format!("0::/kubepods/burstable/pod{first}/{id}\n");
    let slice = format!("kubepods-pod{}.slice", second.replace('-', "_"));
    let systemd = format!("0::/kubepods.slice/{slice}/cri-containerd-{}.scope\n", "b".repeat(64));
    let files =
        [("proc/8181/cgroup", &*cgroup), ("proc/8282/cgroup", &systemd), ("proc/8383/cgroup", "0::/user.slice\n")];
    write_tree(machine.root.path(), &files);
    let serving = machine.start(&["--proc-root", &machine.at("proc")]);
    let page = wait_until(&serving, "shares", |page| page.all("ebb_gpu_process_sm_ratio", &[]).len() == 3);
    let sm = |labels: &[(&str, &str)]| page.one("ebb_gpu_process_sm_ratio", labels);
    assert_eq!(sm(&[("uid", first), ("container", &id)]), Some(0.7));
    assert_eq!(sm(&[("uid", second)]), Some(0.2));
    assert_eq!(sm(&[("uid", "")]), Some(0.0), "it holds memory and does nothing");
    let memory = page.one("ebb_gpu_process_memory_bytes", &[("uid", first)]);
    assert_eq!(memory, Some(6000.0 * 1_048_576.0));
}

#[test]
fn mig_instances_of_a_hopper_have_activity_of_their_own() {
    let machine = Machine::of("mig-h100");
    let serving = machine.start(&[]);
    let page = wait_until(&serving, "activity", |page| page.all("ebb_gpu_sm_active_ratio", &[]).len() == 2);
    let (large, small) = ("MIG-0a1b2c3d-1111-5222-8333-444455556666", "MIG-0a1b2c3d-2222-5222-8333-444455556666");
    assert_eq!(page.one("ebb_gpu_info", &[("gpu_uuid", large), ("mig_profile", "3g.40gb")]), Some(1.0));
    assert_eq!(page.one("ebb_gpu_sm_active_ratio", &[("gpu_uuid", large)]), Some(0.665));
    assert_eq!(page.one("ebb_gpu_sm_active_ratio", &[("gpu_uuid", small)]), Some(0.0));
    assert_eq!(page.one("ebb_gpu_memory_total_bytes", &[("gpu_uuid", small)]), Some(9856.0 * 1_048_576.0));
    assert!(page.all("ebb_gpu_busy_ratio", &[]).is_empty(), "NVML does not know it in MIG mode");
    assert_eq!(page.all("ebb_gpu_memory_used_bytes", &[]).len(), 2, "a sum counts nothing twice");
    assert_eq!(page.all("ebb_gpu_power_watts", &[]).len(), 1, "of the whole GPU only");
    assert_eq!(page.one("ebb_node_utilization_ratio", &[("signal", "gpu")]), Some(0.74));
}

#[test]
fn a_mig_instance_without_gpm_is_idle_only_if_nobody_holds_it() {
    let mut machine = Machine::of("mig-a100");
    // All processes are shown to who is in the first PID namespace.
    std::fs::create_dir_all(machine.at("proc/self/ns")).unwrap();
    std::os::unix::fs::symlink("pid:[4026531836]", machine.at("proc/self/ns/pid")).unwrap();
    let serving = machine.start(&["--proc-root", &machine.at("proc")]);
    let page = wait_until(&serving, "instances", |page| page.all("ebb_gpu_info", &[]).len() == 3);
    assert!(page.all("ebb_gpu_sm_active_ratio", &[]).is_empty());
    assert_eq!(page.one("ebb_node_utilization_ratio", &[("signal", "gpu")]), None, "somebody holds one: unknown");
    machine.change("/devices/0/mig/instances/0/processes", json!([]));
    wait_until(&serving, "nobody holds any", |page| {
        page.one("ebb_node_utilization_ratio", &[("signal", "gpu")]) == Some(0.0)
    });
}

#[test]
fn the_sampler_goes_on_while_the_driver_hangs_and_figures_come_back_by_themselves() {
    let mut machine = Machine::of("hanging-driver");
    machine.change("/hang", json!([]));
    let serving = machine.start(&[]);
    wait_until(&serving, "figures", |page| page.one("ebb_gpu_power_watts", &[]).is_some());
    machine.change("/hang", json!(["nvmlDeviceGetPowerUsage"]));
    let deadlines = |page: &Page| page.one("ebb_source_errors_total", &[("source", "gpu"), ("kind", "deadline")]);
    let page = wait_until(&serving, "several deadlines", |page| deadlines(page).is_some_and(|count| count >= 5.0));
    assert!(!page.is_up());
    assert!(page.all("ebb_gpu_power_watts", &[]).is_empty() && page.all("ebb_gpu_busy_ratio", &[]).is_empty());
    let ages = page.all("ebb_sample_age_seconds", &[]);
    assert!(ages.iter().any(|age| *age < 5.0), "others are sampled: {ages:?}");
    assert_eq!(page.one("ebb_gpu_health", &[("verdict", "healthy")]), Some(1.0), "what was known of it stays");
    assert_eq!(threads(&serving, "nvml"), 1, "no second one beside that which hangs");
    machine.change("/hang", json!([]));
    wait_until(&serving, "figures again", |page| page.is_up() && page.one("ebb_gpu_power_watts", &[]).is_some());
    assert_eq!(threads(&serving, "nvml"), 1);
    machine.change("/hang", json!(["nvmlDeviceGetPowerUsage"]));
    wait_until(&serving, "the driver hangs again", |page| !page.is_up());
    assert_eq!(serving.stop(Signal::TERM).0, Some(0), "nobody waits for the driver at the end");
}

#[test]
fn a_driver_that_hangs_from_the_beginning_holds_nothing_up() {
    let mut machine = Machine::of("hanging-driver");
    machine.change("/hang", json!(["nvmlInit_v2"]));
    let serving = machine.start(&[]);
    wait_until(&serving, "the reason", |page| {
        page.one("ebb_source_errors_total", &[("source", "gpu"), ("kind", "deadline")]) >= Some(3.0)
    });
    machine.change("/hang", json!(["nvmlEventSetWait_v2"]));
    let page = wait_until(&serving, "figures", |page| page.is_up() && page.one("ebb_gpu_power_watts", &[]).is_some());
    assert!(page.one("ebb_gpu_busy_ratio", &[]).is_some(), "events that hang have a thread of their own");
}

#[test]
fn a_driver_that_is_slow_is_a_reading_late_and_not_unknown() {
    let mut machine = Machine::of("t4");
    // Longer than a reading waits, shorter than the time between two.
    machine.change("/delays", json!({"nvmlDeviceGetPowerUsage": 0.7}));
    let serving = machine.start(&["--interval", "1s"]);
    wait_until(&serving, "figures", |page| page.is_up() && page.one("ebb_gpu_power_watts", &[]).is_some());
    let errors = |page: &Page| page.one("ebb_source_errors_total", &[("source", "gpu"), ("kind", "deadline")]);
    let before = errors(&Page::of(&serving));
    machine.change("/devices/0/powerMilliwatts", json!(44_000));
    let page = wait_until(&serving, "new figures", |page| page.one("ebb_gpu_power_watts", &[]) == Some(44.0));
    assert_eq!(errors(&page), before, "only the first reading went without");
}

fn threads(serving: &Serving, name: &str) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", serving.child.id())).unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|found| found.trim_end() == name).count()
}

#[test]
fn a_gpu_that_falls_off_the_bus_is_unknown_and_its_node_should_be_drained() {
    let mut machine = Machine::of("8xh100");
    let serving = machine.start(&[]);
    wait_until(&serving, "figures", |page| page.all("ebb_gpu_busy_ratio", &[]).len() == 8);
    machine.log("4,1,2,-;NVRM: Xid (PCI:0000:08:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.");
    // One of the eight, which the scenario has as one entry.
    let mut lost = machine.script["devices"][0].clone();
    let mut others = lost.clone();
    for (device, count, uuid, pci) in [
        (&mut lost, 1, "GPU-8f0d3c1a-52e4-4b57-9d0e-6f1c0a9b7e00", "00000000:08:00.0"),
        (&mut others, 7, "GPU-other-{}", "00000001:{}8:00.0"),
    ] {
        device["count"] = json!(count);
        device["uuid"] = json!(uuid);
        device["pci"] = json!(pci);
    }
    lost["lost"] = json!(true);
    lost["xids"] = json!([{"xid": 79}]);
    machine.change("/devices", json!([lost, others]));
    let of = [("gpu_uuid", "GPU-8f0d3c1a-52e4-4b57-9d0e-6f1c0a9b7e00")];
    let page = wait_until(&serving, "the verdict", |page| {
        page.one("ebb_gpu_health", &[&of[..], &[("verdict", "drain_then_reboot")]].concat()) == Some(1.0)
            && page.all("ebb_gpu_busy_ratio", &[]).len() == 7
    });
    assert_eq!(page.all("ebb_gpu_info", &of), [1.0], "it is still a GPU of this node");
    assert!(page.is_up(), "the others answer");
    assert!(page.one("ebb_source_errors_total", &[("source", "gpu"), ("kind", "lost")]) >= Some(1.0));
    // NVML tells of it as well, a little later; it is one event.
    std::thread::sleep(Duration::from_millis(1500));
    let page = Page::of(&serving);
    assert_eq!(page.one("ebb_gpu_xid_events_total", &[&of[..], &[("xid", "79")]].concat()), Some(1.0));
}

#[test]
fn xids_are_counted_by_code_whichever_way_tells_of_them() {
    let mut machine = Machine::of("t4");
    machine.log("4,1,2,-;NVRM: Xid (PCI:0000:00:1e): 48, before the agent started");
    let serving = machine.start(&[]);
    wait_until(&serving, "figures", |page| page.one("ebb_gpu_power_watts", &[]).is_some());
    let xid = |code: &str, page: &Page| page.one("ebb_gpu_xid_events_total", &[("gpu", "0"), ("xid", code)]);
    machine.log("6,9,2,-;NVRM: loading NVIDIA UNIX Open Kernel Module");
    machine.log("4,10,2,-;NVRM: Xid (PCI:0000:00:1e): 31, pid=7171, name=python3, Ch 00000008");
    let page = wait_until(&serving, "31 by the log", |page| xid("31", page) == Some(1.0));
    assert_eq!(page.one("ebb_gpu_health", &[("verdict", "healthy")]), Some(1.0), "the application's own");
    machine.change("/devices/0/xids", json!([{"xid": 63}]));
    let page = wait_until(&serving, "63 by NVML", |page| xid("63", page) == Some(1.0));
    assert_eq!(page.one("ebb_gpu_health", &[("verdict", "watch")]), Some(1.0));
    machine.log("4,11,2,-;NVRM: Xid (PCI:0000:00:1e): 48, DBE");
    let page = wait_until(&serving, "48 by the log", |page| xid("48", page) == Some(1.0));
    assert_eq!(page.one("ebb_gpu_health", &[("verdict", "drain_then_reset")]), Some(1.0));
    machine.log("4,12,2,-;NVRM: Xid (PCI:0000:99:00): 13, of a GPU that NVML does not know");
    wait_until(&serving, "a GPU by its place", |page| {
        page.one("ebb_gpu_xid_events_total", &[("gpu_uuid", ""), ("gpu", "00000000:99:00.0"), ("xid", "13")])
            == Some(1.0)
    });
}

#[test]
fn what_the_driver_asks_for_outranks_the_table() {
    let mut machine = Machine::of("8xh100");
    machine.change("/devices/0/count", json!(1));
    let serving = machine.start(&[]);
    wait_until(&serving, "figures", |page| page.one("ebb_gpu_recovery_action", &[("action", "none")]) == Some(1.0));
    machine.change("/devices/0/fields/230", json!(2));
    // Its news make the driver be asked at once, not only when its turn comes.
    machine.log("4,10,2,-;NVRM: Xid (PCI:0000:08:00): 154, GPU recovery action changed from 0x0 to 0x2");
    let page = wait_until(&serving, "the verdict", |page| {
        page.one("ebb_gpu_health", &[("verdict", "drain_then_reboot")]) == Some(1.0)
    });
    assert_eq!(page.one("ebb_gpu_recovery_action", &[("action", "node_reboot")]), Some(1.0));
    let notices = |count| move |page: &Page| page.one("ebb_notices", &[("trigger", "gpu_recovery")]) == Some(count);
    wait_until(&serving, "a notice", notices(1.0));
    machine.change("/devices/0/fields/230", json!(0));
    machine.log("4,11,3,-;NVRM: Xid (PCI:0000:08:00): 154, GPU recovery action changed from 0x2 to 0x0");
    wait_until(&serving, "no notice any more", notices(0.0));
}

#[test]
fn a_driver_that_does_not_match_is_named_and_tried_again() {
    let mut machine = Machine::of("driver-mismatch");
    let serving = machine.start(&[]);
    wait_until(&serving, "the reason", |page| {
        page.one("ebb_source_errors_total", &[("source", "gpu"), ("kind", "mismatch")]).is_some() && !page.is_up()
    });
    machine.change("/faults", json!({}));
    wait_until(&serving, "figures", |page| page.is_up() && page.one("ebb_gpu_power_watts", &[]).is_some());
}

#[test]
fn a_library_that_comes_later_is_found() {
    let machine = Machine::of("t4");
    let place = machine.at("libnvidia-ml.so.1");
    let serving = machine.start_with(&place, &[]);
    let page = wait_until(&serving, "the reason", |page| {
        page.one("ebb_source_errors_total", &[("source", "gpu"), ("kind", "missing")]).is_some()
    });
    assert!(!page.is_up() && page.all("ebb_gpu_info", &[]).is_empty());
    std::os::unix::fs::symlink(library(), &place).unwrap();
    wait_until(&serving, "figures", |page| page.is_up() && page.one("ebb_gpu_power_watts", &[]).is_some());
}

#[test]
fn missing_rights_cost_their_figures_alone_and_are_counted_once() {
    let machine = Machine::of("no-permission");
    let serving = machine.start(&[]);
    let page = wait_until(&serving, "figures", |page| page.one("ebb_gpu_power_watts", &[]).is_some());
    std::thread::sleep(Duration::from_millis(500));
    let later = Page::of(&serving);
    for page in [page, later] {
        assert!(page.is_up());
        assert!(
            page.all("ebb_gpu_sm_active_ratio", &[]).is_empty() && page.all("ebb_gpu_process_sm_ratio", &[]).is_empty()
        );
        let errors = page.one("ebb_source_errors_total", &[("source", "gpu"), ("kind", "permission")]);
        assert_eq!(errors, Some(2.0), "one for each of the two");
    }
}

#[test]
fn a_gpu_on_the_bus_that_nvml_does_not_show_makes_the_node_unknown() {
    let mut machine = Machine::of("t4");
    machine.change("/devices/0/utilization", json!(0));
    machine.put_on_bus("0000:00:1e.0");
    let serving = machine.start(&[]);
    wait_until(&serving, "idle", |page| page.one("ebb_node_utilization_ratio", &[("signal", "gpu")]) == Some(0.0));
    drop(serving);
    machine.put_on_bus("0000:00:1f.0");
    let serving = machine.start(&[]);
    let page = wait_until(&serving, "figures", |page| page.one("ebb_gpu_busy_ratio", &[]) == Some(0.0));
    assert_eq!(page.one("ebb_node_utilization_ratio", &[("signal", "gpu")]), None);
}

#[test]
fn a_node_without_gpus_is_asked_nothing_and_one_without_a_driver_says_why() {
    let machine = Machine::of("t4");
    let (sys, kmsg) = (machine.at("sys"), machine.at("kmsg"));
    let once = || {
        let args = ["--once", "-o", "json", "--interval", "100ms", "--sys-root", &sys, "--kmsg", &kmsg];
        let output = run(&args);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let source = |sample: &Value, name: &str| {
        sample["sources"].as_array().unwrap().iter().find(|source| source["source"] == name).cloned()
    };
    let sample = once();
    assert_eq!(sample["utilizationPermille"]["gpu"], "absent");
    assert_eq!(source(&sample, "kmsg"), None);
    machine.put_on_bus("0000:3b:00.0");
    let sample = once();
    assert_eq!(sample["utilizationPermille"]["gpu"], "unknown");
    let gpu = source(&sample, "gpu").unwrap();
    assert_eq!(gpu["up"], false);
    assert!(gpu["why"].as_str().unwrap().starts_with("load NVML from libnvidia-ml.so.1"), "{gpu}");
}

#[test]
fn a_bad_xid_policy_is_refused_with_its_line_and_a_good_one_is_followed() {
    let machine = Machine::of("t4");
    let policy = machine.at("policy.csv");
    std::fs::write(&policy, "version,mine\nxid,response,source\n31,explode,me\n").unwrap();
    let output = run(&["--standalone", "--xid-policy", &policy]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("line 3: expected one of ignore"), "{error}");
    std::fs::write(&policy, "version,mine\nxid,response,source\n31,drain_then_replace,me\n").unwrap();
    let serving = machine.start(&["--xid-policy", &policy]);
    machine.log("4,10,2,-;NVRM: Xid (PCI:0000:00:1e): 31, pid=1, name=x");
    let page = wait_until(&serving, "the verdict", |page| {
        page.one("ebb_gpu_health", &[("verdict", "drain_then_replace")]) == Some(1.0)
    });
    assert_eq!(page.one("ebb_gpu_xid_policy_info", &[("version", "mine")]), Some(1.0));
}

#[test]
fn the_node_s_document_shows_its_gpus() {
    let machine = Machine::of("mig-h100");
    let serving = machine.start(&[]);
    wait_until(&serving, "activity", |page| page.all("ebb_gpu_sm_active_ratio", &[]).len() == 2);
    let node: Value = serde_json::from_str(&serving.get("/api/v1/node").2).unwrap();
    let gpu = &node["gpus"][0];
    assert_eq!((&gpu["model"], &gpu["verdict"]), (&json!("NVIDIA H100 80GB HBM3"), &json!("healthy")));
    assert!(gpu.get("busyPermille").is_none(), "not known in MIG mode: {gpu}");
    let instance = &gpu["migInstances"][0];
    assert_eq!((&instance["profile"], &instance["smActivePermille"]), (&json!("3g.40gb"), &json!(665)));
    assert_eq!((&instance["processes"][0]["pid"], &instance["processes"][0]["pod"]), (&json!(5151), &json!("")));

    let mut once = agent();
    once.env("FAKE_NVML_SCRIPT", machine.at("script")).args(["--once", "--interval", "100ms"]);
    let output = once.args(["--nvml-library", library().to_str().unwrap()]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("SM ACTIVE") && table.contains("healthy"), "{table}");
}

/// Grafana's dashboard 12239, which dcgm-exporter ships, asks for these.
const DASHBOARD_12239: [&str; 6] = [
    "DCGM_FI_DEV_GPU_TEMP",
    "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_DEV_SM_CLOCK",
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
];

/// The page once it has that many families.
fn dcgm(serving: &Serving, families: usize) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (status, head, page) = serving.get("/compat/dcgm");
        assert_eq!(status, 200, "{page}");
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        if page.lines().filter(|line| line.starts_with("# TYPE")).count() == families {
            return page;
        }
        assert!(Instant::now() < deadline, "not {families} families:\n{page}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_page_for_dashboards_of_dcgm_has_its_names_units_and_labels() {
    let check = |scenario: &str, golden: &str, label: &str, families| {
        let mut machine = Machine::of(scenario);
        for figure in ["utilization", "powerMilliwatts", "temperature"] {
            let first = machine.script["devices"][0][figure].as_array().map(|steps| steps[0].clone());
            first.into_iter().for_each(|value| machine.change(&format!("/devices/0/{figure}"), value));
        }
        let serving = machine.start(&["--serve-dcgm", "--dcgm-hostname-label", label, "--node-name", "gpu-node-1"]);
        assert_eq!(dcgm(&serving, families), golden, "{scenario}");
    };
    check("t4", include_str!("golden/dcgm-t4.txt"), "Hostname", 14);
    check("mig-h100", include_str!("golden/dcgm-mig-h100.txt"), "hostname", 17);
}

#[test]
fn the_page_for_dashboards_of_dcgm_is_served_on_request_and_has_what_12239_asks_for() {
    let machine = Machine::of("8xh100");
    assert_eq!(machine.start(&[]).get("/compat/dcgm").0, 404);
    let page = dcgm(&machine.start(&["--serve-dcgm"]), 23);
    for name in DASHBOARD_12239 {
        assert_eq!(page.lines().filter(|line| line.starts_with(&format!("{name}{{"))).count(), 8, "{name}");
    }
    assert!(!page.contains("9223372036854775"), "DCGM's blank value");
}
