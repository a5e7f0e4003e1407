//! The kernel program against the kernel's own account of the same processes. Needs root, BTF and cgroup v2; where one
//! is missing, each test says so and passes.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use aya::sys::{Stats, enable_stats};
use ebb_agent::source::ebpf::{CgroupSchedule, Scheduler};

const SPAN: Duration = Duration::from_secs(1);

#[test]
fn a_busy_process_is_charged_to_its_cgroup() {
    let _alone = alone();
    let Some((scheduler, cgroup)) = attach(4096).zip(Cgroup::new("busy")) else { return };
    let busy = cgroup.spawn_busy();
    let (before, stolen) = (busy.account(), not_for_tasks());
    busy.run_for(SPAN);
    let (after, stolen) = (busy.account(), not_for_tasks() - stolen);

    let charged = cgroup.read(&scheduler);
    let run = after.run - before.run;
    assert!(run > SPAN / 10, "the process ran only {run:?}: nothing to compare");
    // We measure from switch to switch, so what interrupts and the hypervisor took meanwhile is in our figure only.
    assert!(charged.run > run.mul_f64(0.97), "charged {charged:?}, by the kernel's account {run:?}");
    assert!(
        charged.run < run.mul_f64(1.03) + stolen,
        "charged {charged:?}, by the kernel's account {run:?} + {stolen:?}"
    );
    let (switches, missed) = (after.switches - before.switches, scheduler.dropped().unwrap().missed);
    assert!(charged.switches.abs_diff(switches) <= missed, "charged {charged:?} of {switches}, {missed} missed");
}

#[test]
fn processes_that_share_a_cpu_are_charged_their_wait() {
    let _alone = alone();
    let Some((scheduler, cgroup)) = attach(4096).zip(Cgroup::new("shared")) else { return };
    let pair = [cgroup.spawn_busy(), cgroup.spawn_busy()];
    let before = pair.each_ref().map(Busy::account);
    pair.iter().for_each(Busy::resume);
    thread::sleep(SPAN);
    pair.iter().for_each(Busy::stop);

    let wait: Duration = pair.iter().zip(before).map(|(busy, before)| busy.account().wait - before.wait).sum();
    assert!(wait > SPAN / 2, "two processes on one CPU waited only {wait:?}: nothing to compare");
    let charged = cgroup.read(&scheduler);
    assert!(charged.wait.abs_diff(wait) < wait.mul_f64(0.03), "charged {charged:?}, by the kernel's account {wait:?}");
}

#[test]
fn the_idle_task_is_charged_to_nobody() {
    let _alone = alone();
    // On a machine that others keep busy there may be no idle task to see for a while.
    for _ in 0..20 {
        let (idle_before, start) = (idle(), Instant::now());
        let Some(scheduler) = attach(4096) else { return };
        thread::sleep(SPAN / 2);
        let cgroups = scheduler.read().unwrap();
        let (wall, idle) = (start.elapsed(), idle() - idle_before);

        let room = wall * thread::available_parallelism().unwrap().get() as u32;
        let run: Duration = cgroups.iter().map(|cgroup| cgroup.run).sum();
        assert!(run + idle < room.mul_f64(1.1), "{run:?} charged and {idle:?} idle in {room:?}");
        for cgroup in cgroups {
            // The idle task never queues: taken for one that does, it would wait a negative time, which is centuries.
            assert!(cgroup.wait < wall * 1_000, "{cgroup:?} waited longer than all tasks of this machine could");
        }
        let dropped = scheduler.dropped().unwrap();
        assert!(dropped.full == 0 && dropped.clock == 0, "{dropped:?}");
        if idle > room / 5 {
            return;
        }
    }
    eprintln!("not run: this machine is never idle");
}

#[test]
fn a_full_table_counts_what_it_drops_and_forgetting_makes_room() {
    let _alone = alone();
    let Some(((scheduler, first), second)) = attach(1).zip(Cgroup::new("first")).zip(Cgroup::new("second")) else {
        return;
    };
    let busy = [first.spawn_busy(), second.spawn_busy()];
    busy.iter().for_each(|busy| busy.run_for(SPAN / 10));
    let (held, dropped) = (scheduler.read().unwrap(), scheduler.dropped().unwrap());
    assert_eq!(held.len(), 1, "{held:?}");
    assert!(dropped.full > 0 && dropped.clock == 0, "{dropped:?}");

    // Whoever runs next takes the room; on a busy machine that need not be one of ours.
    scheduler.forget(held[0].id).unwrap();
    scheduler.forget(u64::MAX).unwrap();
    busy.iter().for_each(|busy| busy.run_for(SPAN / 10));
    let refilled = scheduler.read().unwrap();
    assert_eq!(refilled.len(), 1, "{refilled:?}");
    assert!(refilled[0].run < held[0].run + SPAN, "{refilled:?} goes on from {held:?}");
}

#[test]
fn a_forgotten_cgroup_is_gone_until_it_runs_again() {
    let _alone = alone();
    let Some((scheduler, cgroup)) = attach(4096).zip(Cgroup::new("forgotten")) else { return };
    let busy = cgroup.spawn_busy();
    busy.run_for(SPAN / 2);
    assert!(cgroup.read(&scheduler).run > SPAN / 20);

    scheduler.forget(cgroup.id).unwrap();
    let cgroups = scheduler.read().unwrap();
    assert!(cgroups.iter().all(|found| found.id != cgroup.id), "{cgroups:?}");
    assert!(cgroups.is_sorted_by_key(|found| found.id), "{cgroups:?}");

    busy.run_for(SPAN / 20);
    let again = cgroup.read(&scheduler);
    assert!(again.run > Duration::ZERO && again.run < SPAN / 4, "{again:?}");
}

#[test]
fn the_kernel_tells_the_cost_once_asked_to_measure() {
    let _alone = alone();
    let Some(scheduler) = attach(4096) else { return };
    let _measuring = match enable_stats(Stats::RunTime) {
        Ok(measuring) => measuring,
        Err(error) => return eprintln!("not run: {error}: {}", error.io_error),
    };
    thread::sleep(SPAN / 5);
    let cost = scheduler.cost().unwrap().expect("measured since it was asked to");
    assert!(cost.run_time > Duration::ZERO && cost.run_count > 0, "{cost:?}");
}

/// One test at a time: each would be the load that disturbs the others.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `None`, and the reason printed, where this machine or this user cannot have the program.
fn attach(max_cgroups: u32) -> Option<Scheduler> {
    match Scheduler::attach(max_cgroups) {
        Ok(scheduler) => Some(scheduler),
        Err(error) if matches!(error.kind(), "btf" | "rights") => {
            eprintln!("not run: {error}");
            None
        }
        Err(error) => panic!("{:?}", anyhow::Error::new(error)),
    }
}

/// A fresh cgroup, removed with all that runs in it.
struct Cgroup {
    path: PathBuf,
    id: u64,
}

impl Cgroup {
    /// `None`, and the reason printed, where there is no cgroup v2 that we may write to.
    fn new(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|mount| mount[2] == "cgroup2");
        let Some(mount) = mount else {
            eprintln!("not run: no cgroup v2 is mounted");
            return None;
        };
        let path = Path::new(mount[1]).join(format!("ebb-test-{name}-{}", std::process::id()));
        if let Err(error) = fs::create_dir(&path) {
            eprintln!("not run: create {}: {error}", path.display());
            return None;
        }
        let id = fs::metadata(&path).unwrap().ino();
        Some(Self { path, id })
    }

    /// A process of this cgroup that wants the first CPU as soon as it is resumed.
    fn spawn_busy(&self) -> Busy<'_> {
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", "0", "sh", "-c", "kill -STOP $$; while :; do :; done"]).stdin(Stdio::null());
        let busy = Busy { child: command.spawn().expect("taskset (util-linux) starts"), cgroup: self };
        busy.wait_until_stopped();
        fs::write(self.path.join("cgroup.procs"), busy.child.id().to_string()).unwrap();
        busy
    }

    fn read(&self, scheduler: &Scheduler) -> CgroupSchedule {
        let cgroups = scheduler.read().unwrap();
        *cgroups.iter().find(|found| found.id == self.id).unwrap_or_else(|| panic!("{} is not in {cgroups:?}", self.id))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + SPAN;
        while let Err(error) = fs::remove_dir(&self.path) {
            assert!(thread::panicking() || Instant::now() < deadline, "remove {}: {error}", self.path.display());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Stopped at first. Only a stopped process is compared: its last stint has ended and is in both accounts.
struct Busy<'a> {
    child: Child,
    #[expect(dead_code, reason = "outlives its processes, so that it can be removed")]
    cgroup: &'a Cgroup,
}

/// The three fields of `/proc/<pid>/schedstat`.
struct Account {
    run: Duration,
    wait: Duration,
    switches: u64,
}

impl Busy<'_> {
    fn run_for(&self, span: Duration) {
        self.resume();
        thread::sleep(span);
        self.stop();
    }

    fn resume(&self) {
        self.signal("CONT");
    }

    fn stop(&self) {
        self.signal("STOP");
        self.wait_until_stopped();
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
    }

    fn wait_until_stopped(&self) {
        let stat = format!("/proc/{}/stat", self.child.id());
        let deadline = Instant::now() + 10 * SPAN;
        while !fs::read_to_string(&stat).unwrap().contains(") T ") {
            assert!(Instant::now() < deadline, "process {} does not stop", self.child.id());
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(10)); // It says so just before it leaves the CPU.
    }

    fn account(&self) -> Account {
        let fields = fs::read_to_string(format!("/proc/{}/schedstat", self.child.id())).unwrap();
        let fields: Vec<u64> = fields.split_whitespace().map(|field| field.parse().unwrap()).collect();
        Account { run: Duration::from_nanos(fields[0]), wait: Duration::from_nanos(fields[1]), switches: fields[2] }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The machine's time in interrupts and with the hypervisor since boot.
fn not_for_tasks() -> Duration {
    stat(5) + stat(6) + stat(7)
}

fn idle() -> Duration {
    stat(3) + stat(4)
}

/// One field of the first line of `/proc/stat`, which counts in hundredths of a second on every Linux we run on.
fn stat(field: usize) -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let ticks: u64 = stat.split_whitespace().nth(field + 1).unwrap().parse().unwrap();
    Duration::from_millis(10 * ticks)
}
