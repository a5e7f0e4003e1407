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
use ebb_agent::source::ebpf::{CgroupSchedule, CudaLaunches, Error, Launches, Preemptions, Schedule, Scheduler};

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
    let (switches, missed) = (after.switches - before.switches, scheduler.read().unwrap().dropped.missed);
    assert!(charged.latency.count().abs_diff(switches) <= missed, "charged {charged:?} of {switches}, {missed} missed");
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
        let cgroups = scheduler.read().unwrap().cgroups;
        let (wall, idle) = (start.elapsed(), idle() - idle_before);

        let room = wall * thread::available_parallelism().unwrap().get() as u32;
        let run: Duration = cgroups.iter().map(|cgroup| cgroup.run).sum();
        assert!(run + idle < room.mul_f64(1.1), "{run:?} charged and {idle:?} idle in {room:?}");
        for cgroup in cgroups {
            // The idle task never queues: taken for one that does, it would wait a negative time, which is centuries.
            assert!(cgroup.wait < wall * 1_000, "{cgroup:?} waited longer than all tasks of this machine could");
        }
        let dropped = scheduler.read().unwrap().dropped;
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
    let (held, dropped) = (scheduler.read().unwrap().cgroups, scheduler.read().unwrap().dropped);
    assert_eq!(held.len(), 1, "{held:?}");
    assert!(dropped.full > 0 && dropped.clock == 0, "{dropped:?}");

    // Whoever runs next takes the room; on a busy machine that need not be one of ours.
    scheduler.forget(held[0].id).unwrap();
    scheduler.forget(u64::MAX).unwrap();
    busy.iter().for_each(|busy| busy.run_for(SPAN / 10));
    let refilled = scheduler.read().unwrap().cgroups;
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
    let cgroups = scheduler.read().unwrap().cgroups;
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

#[test]
fn every_cpus_time_is_charged_idle_or_dropped_and_none_of_it_twice() {
    let _alone = alone();
    let attached = Instant::now();
    let Some((scheduler, cgroup)) = attach(4096).zip(Cgroup::new("sum")) else { return };
    let busy = [cgroup.spawn_busy(), cgroup.spawn_busy()];
    busy.iter().for_each(Busy::resume);
    switch_once_on_each_cpu();
    let told = |schedule: &Schedule| {
        schedule.cgroups.iter().map(|cgroup| cgroup.run).sum::<Duration>() + schedule.idle + schedule.dropped.time
    };
    let cpus = thread::available_parallelism().unwrap().get() as u32;
    let (start, first) = (Instant::now(), told(&scheduler.read().unwrap()));
    let before_first = start.elapsed();
    let mut last = first;
    while start.elapsed() < SPAN {
        let schedule = scheduler.read().unwrap();
        let (next, most) = (told(&schedule), attached.elapsed() * cpus);
        assert!(next >= last && next <= most, "{next:?} after {last:?}, of {most:?}: {schedule:?}");
        last = next;
    }
    let before_last = start.elapsed();
    last = told(&scheduler.read().unwrap());
    let (short, long) = (before_last - before_first, start.elapsed());
    let told = last - first;
    assert!(told >= short.mul_f64(0.99) * cpus && told <= long.mul_f64(1.01) * cpus, "{told:?}, {short:?} to {long:?}");
}

#[test]
fn a_task_that_never_leaves_its_cpu_is_charged_all_the_same() {
    let _alone = alone();
    let Some((scheduler, cgroup)) = attach(4096).zip(Cgroup::new("fixed")) else { return };
    let busy = cgroup.spawn_busy();
    let chrt = Command::new("chrt").args(["--fifo", "--pid", "50", &busy.child.id().to_string()]).output();
    if !chrt.as_ref().is_ok_and(|chrt| chrt.status.success()) {
        return eprintln!("not run: no real-time priority: {chrt:?}");
    }
    let of = |schedule: Schedule| schedule.cgroups.into_iter().find(|found| found.id == cgroup.id).unwrap_or_default();
    let deadline = Instant::now() + 10 * SPAN;
    busy.resume();
    // Even it may be interrupted by the kernel's own threads: until there was a while in which it was not.
    loop {
        let (start, before) = (Instant::now(), of(scheduler.read().unwrap()));
        thread::sleep(SPAN / 5);
        let (after, span) = (of(scheduler.read().unwrap()), start.elapsed());
        if after.latency.count() == before.latency.count() && after.run > before.run {
            let run = after.run - before.run;
            assert!(run > (SPAN / 5).mul_f64(0.95) && run <= span, "{run:?} in {span:?}");
            break;
        }
        assert!(Instant::now() < deadline, "{before:?}, then {after:?}");
    }
    busy.stop();
}

#[test]
fn a_wait_that_ends_on_another_cpu_counts_from_its_beginning() {
    let _alone = alone();
    let Some((scheduler, cgroup)) = attach(4096).zip(Cgroup::new("moved")) else { return };
    let cpus = thread::available_parallelism().unwrap().get();
    let busy: Vec<_> = (0..2 * cpus + 1).map(|_| cgroup.spawn_busy_on(&format!("0-{}", cpus - 1))).collect();
    let before: Vec<_> = busy.iter().map(Busy::account).collect();
    busy.iter().for_each(Busy::resume);
    thread::sleep(2 * SPAN);
    busy.iter().for_each(Busy::stop);
    let wait: Duration = busy.iter().zip(before).map(|(busy, before)| busy.account().wait - before.wait).sum();
    let charged = cgroup.read(&scheduler);
    assert!(charged.wait.abs_diff(wait) < wait.mul_f64(0.02), "charged {charged:?}, by the kernel's account {wait:?}");
}

#[test]
fn preemptions_are_as_many_as_the_kernel_counts_and_by_whose_task_came() {
    let _alone = alone();
    let Some(((scheduler, victim), other)) = attach(4096).zip(Cgroup::new("victim")).zip(Cgroup::new("other")) else {
        return;
    };
    let (busy, rival) = (victim.spawn_busy(), other.spawn_busy());
    let mut last = Preemptions::default();
    let sum = |it: Preemptions, of: &dyn Fn(&str) -> bool| -> u64 {
        it.by().iter().filter(|(by, _)| of(by)).map(|(_, count)| count).sum()
    };
    let mut round = |owners: &[(u64, u64)], by: &str| {
        scheduler.set_owners(owners.iter().copied()).unwrap();
        let before = last;
        // On a busy machine, others may take the CPU from it for a while.
        let deadline = Instant::now() + 10 * SPAN;
        while sum(last, &|it| it == by) == sum(before, &|it| it == by) {
            assert!(Instant::now() < deadline, "{last:?} after {before:?}");
            let (counted, missed) = (busy.preempted(), scheduler.read().unwrap().dropped.missed);
            [&busy, &rival].into_iter().for_each(Busy::resume);
            thread::sleep(SPAN / 2);
            [&busy, &rival].into_iter().for_each(Busy::stop);
            let counted = busy.preempted() - counted;
            let schedule = scheduler.read().unwrap();
            let now = schedule.cgroups.iter().find(|found| found.id == victim.id).unwrap().preemptions;
            let missed = schedule.dropped.missed - missed;
            // The last switch, to stop, may be counted either way: a signal makes a task runnable while it leaves.
            let difference = (sum(now, &|_| true) - sum(last, &|_| true)).abs_diff(counted);
            assert!(difference <= missed + 2, "{now:?} after {last:?}, counted {counted}");
            last = now;
        }
        let other = |it: &str| it != by && it != "unknown";
        assert_eq!(sum(last, &other), sum(before, &other), "{last:?} after {before:?}");
    };
    let (victim, other) = (victim.id, other.id);
    round(&[], "unknown");
    round(&[(victim, 7), (other, 7)], "same_pod");
    round(&[(victim, 7), (other, 8)], "other_pod");
    round(&[(victim, 7), (other, 0)], "system");
}

#[test]
fn waits_fall_into_buckets_that_hold_their_sum() {
    let _alone = alone();
    let Some((scheduler, cgroup)) = attach(4096).zip(Cgroup::new("buckets")) else { return };
    let pair = [cgroup.spawn_busy(), cgroup.spawn_busy()];
    pair.iter().for_each(Busy::resume);
    thread::sleep(SPAN);
    pair.iter().for_each(Busy::stop);
    let charged = cgroup.read(&scheduler);
    let (mut least, mut most, mut lower) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for (bound, count) in charged.latency.buckets() {
        let count = u32::try_from(count).unwrap();
        least += lower * count;
        lower = bound.unwrap_or(lower);
        most += bound.unwrap_or(10 * SPAN) * count;
    }
    assert!(least <= charged.wait && charged.wait <= most, "{least:?} to {most:?}: {charged:?}");
    assert!(least > SPAN / 10, "two processes on one CPU waited for whole slices of each other: {charged:?}");
}

#[test]
fn what_all_waited_is_the_sum_of_what_each_cgroup_did() {
    let _alone = alone();
    let Some((scheduler, cgroup)) = attach(4096).zip(Cgroup::new("all")) else { return };
    let pair = [cgroup.spawn_busy(), cgroup.spawn_busy()];
    pair.iter().for_each(Busy::resume);
    thread::sleep(SPAN / 2);
    let (before, schedule, after) = (scheduler.waits().unwrap(), scheduler.read().unwrap(), scheduler.waits().unwrap());
    let wait: Duration = schedule.cgroups.iter().map(|cgroup| cgroup.wait).sum();
    let stints: u64 = schedule.cgroups.iter().map(|cgroup| cgroup.latency.count()).sum();
    assert!(
        before.wait > Duration::ZERO && before.wait <= wait && wait <= after.wait,
        "{wait:?}: {before:?}, {after:?}"
    );
    let (least, most) = (before.latency.count(), after.latency.count());
    assert!(least <= stints && stints <= most, "{stints}: {before:?}, {after:?}");
}

#[test]
fn ten_thousand_cgroups_that_come_and_go_leave_nothing_behind() {
    const BATCH: u32 = 500;
    let _alone = alone();
    let Some((scheduler, parent)) = attach(64 + BATCH).zip(Cgroup::new("many")) else { return };
    let runner = parent.spawn_busy();
    let pid = runner.child.id().to_string();
    let mut seen = 0;
    for batch in 0..10_000 / BATCH {
        let children: Vec<_> = (0..BATCH).map(|child| parent.path.join(format!("{batch}-{child}"))).collect();
        for child in &children {
            fs::create_dir(child).unwrap();
            fs::write(child.join("cgroup.procs"), &pid).unwrap();
            runner.resume_unwatched();
        }
        runner.stop();
        let ids: Vec<_> = children.iter().map(|child| fs::metadata(child).unwrap().ino()).collect();
        fs::write(parent.path.join("cgroup.procs"), &pid).unwrap();
        let schedule = scheduler.read().unwrap();
        seen += schedule.cgroups.iter().filter(|cgroup| ids.contains(&cgroup.id)).count();
        children.iter().for_each(|child| fs::remove_dir(child).unwrap());
        ids.iter().for_each(|id| scheduler.forget(*id).unwrap());
        let left = scheduler.read().unwrap().cgroups;
        assert!(left.iter().all(|cgroup| !ids.contains(&cgroup.id)), "of batch {batch}: {left:?}");
    }
    let dropped = scheduler.read().unwrap().dropped;
    assert_eq!((dropped.full, dropped.clock), (0, 0), "{dropped:?}");
    assert!(seen > 100, "only {seen} cgroups were seen to run");
}

#[test]
fn four_thousand_threads_are_charged_what_they_ran_and_waited() {
    let _alone = alone();
    let Some((scheduler, cgroup)) = attach(4096).zip(Cgroup::new("threads")) else { return };
    let home = cgroup.enter();
    let work = || {
        for _ in 0..5 {
            let start = Instant::now();
            while start.elapsed() < Duration::from_micros(20) {}
            thread::sleep(Duration::from_micros(100));
        }
        Account::of("/proc/thread-self/schedstat")
    };
    let threads: Vec<_> = (0..4096).map(|_| thread::Builder::new().stack_size(64 << 10).spawn(work).unwrap()).collect();
    let accounts: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    drop(home);
    let charged = cgroup.read(&scheduler);
    let (run, wait): (Duration, Duration) =
        (accounts.iter().map(|it| it.run).sum(), accounts.iter().map(|it| it.wait).sum());
    let switches: u64 = accounts.iter().map(|it| it.switches).sum();
    // The thread that starts them is charged too, and so is what each does after it read its account.
    assert!(charged.run > run.mul_f64(0.97), "charged {charged:?}, by the kernel's account {run:?}");
    assert!(charged.wait > wait.mul_f64(0.97), "charged {charged:?}, by the kernel's account {wait:?}");
    assert!(charged.latency.count() >= switches - scheduler.read().unwrap().dropped.missed, "{charged:?}, {switches}");
}

#[test]
fn launches_are_counted_for_the_cgroup_that_calls() {
    let _alone = alone();
    let cuda = Cuda::load();
    let Some(((launches, first), second)) = count(4096).zip(Cgroup::new("cuda")).zip(Cgroup::new("cuda-too")) else {
        return;
    };
    cuda.launch("cuLaunchKernel", 1);
    let home = first.enter();
    cuda.launch("cuLaunchKernel", 1_000);
    cuda.launch("cuGraphLaunch_ptsz", 10);
    drop(home);
    let home = second.enter();
    thread::scope(|scope| (0..4).for_each(|_| _ = scope.spawn(|| cuda.launch("cuLaunchCooperativeKernel", 500))));
    drop(home);
    let Launches { cgroups, dropped } = launches.read().unwrap();
    assert_eq!(
        (cgroups.get(&first.id), cgroups.get(&second.id), dropped),
        (Some(&1_010), Some(&2_000), 0),
        "{cgroups:?}"
    );
    assert_eq!(cgroups.values().sum::<u64>(), 3_011, "{cgroups:?}");

    drop(launches);
    cuda.launch("cuLaunchKernel", 1);
    assert_eq!(count(4096).unwrap().read().unwrap(), Launches::default());
}

#[test]
fn launches_of_cgroups_without_room_are_dropped_until_one_is_forgotten() {
    let _alone = alone();
    let cuda = Cuda::load();
    let Some(((mut launches, first), second)) = count(1).zip(Cgroup::new("room")).zip(Cgroup::new("no-room")) else {
        return;
    };
    let mut check = |cgroup: &Cgroup, forget: Option<u64>, expected: Launches| {
        forget.into_iter().for_each(|id| launches.forget(id).unwrap());
        let home = cgroup.enter();
        cuda.launch("cuLaunchKernel", 5);
        drop(home);
        assert_eq!(launches.read().unwrap(), expected);
    };
    check(&first, None, Launches { cgroups: [(first.id, 5)].into(), dropped: 0 });
    check(&second, None, Launches { cgroups: [(first.id, 5)].into(), dropped: 5 });
    check(&second, Some(first.id), Launches { cgroups: [(second.id, 5)].into(), dropped: 5 });
}

#[test]
fn a_file_that_is_no_libcuda_is_refused() {
    let refused = |file: &Path, kind| match CudaLaunches::attach(file, 1) {
        Err(error) if error.kind() == "rights" => eprintln!("not run: {error}"),
        Err(error) => assert_eq!(error.kind(), kind, "{error}"),
        Ok(_) => panic!("counts launches in {}", file.display()),
    };
    refused(Path::new("libcuda.so.1"), "missing");
    refused(Path::new("/proc/self/mounts"), "probe");
    refused(&std::env::current_exe().unwrap(), "probe");
}

/// The fake libcuda in this process.
struct Cuda(libloading::Library);

impl Cuda {
    fn path() -> PathBuf {
        std::env::current_exe().unwrap().with_file_name("libfake_cuda.so")
    }

    fn load() -> Self {
        // SAFETY: nothing in it runs as it is loaded.
        Self(unsafe { libloading::Library::new(Self::path()) }.unwrap())
    }

    fn launch(&self, function: &str, times: usize) {
        // SAFETY: so it is declared, and any pointer will do.
        let function = unsafe { self.0.get::<extern "C" fn(*const ()) -> i32>(function.as_bytes()).unwrap() };
        (0..times).for_each(|_| assert_eq!(function(std::ptr::null()), 0));
    }
}

/// `None`, and the reason printed, where this user cannot.
fn count(max_cgroups: u32) -> Option<CudaLaunches> {
    granted(CudaLaunches::attach(&Cuda::path(), max_cgroups))
}

/// One test at a time: each would be the load that disturbs the others.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `None`, and the reason printed, where this machine or this user cannot have the program.
fn attach(max_cgroups: u32) -> Option<Scheduler> {
    granted(Scheduler::attach(max_cgroups))
}

fn granted<T>(attached: Result<T, Error>) -> Option<T> {
    match attached {
        Ok(attached) => Some(attached),
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
        self.spawn_busy_on("0")
    }

    fn spawn_busy_on(&self, cpus: &str) -> Busy<'_> {
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", cpus, "sh", "-c", "kill -STOP $$; while :; do :; done"]).stdin(Stdio::null());
        let busy = Busy { child: command.spawn().expect("taskset (util-linux) starts"), cgroup: self };
        busy.wait_until_stopped();
        fs::write(self.path.join("cgroup.procs"), busy.child.id().to_string()).unwrap();
        busy
    }

    /// This process, until what is returned is dropped.
    fn enter(&self) -> Home {
        let root = self.path.parent().unwrap().to_owned();
        let pid = std::process::id().to_string();
        fs::write(self.path.join("cgroup.procs"), &pid).unwrap();
        Home { root, pid }
    }

    fn read(&self, scheduler: &Scheduler) -> CgroupSchedule {
        let cgroups = scheduler.read().unwrap().cgroups;
        *cgroups.iter().find(|found| found.id == self.id).unwrap_or_else(|| panic!("{} is not in {cgroups:?}", self.id))
    }
}

struct Home {
    root: PathBuf,
    pid: String,
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::write(self.root.join("cgroup.procs"), &self.pid);
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
        let left = self.left();
        self.signal("STOP");
        self.wait_until_stopped();
        // On a busy machine it may be a while from saying so to leaving the CPU, and until then its stint is only in the
        // kernel's account, which each tick brings up to date.
        let deadline = Instant::now() + 10 * SPAN;
        while self.left() == left {
            assert!(Instant::now() < deadline, "process {} does not leave its CPU", self.child.id());
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(10)); // It is counted just before.
    }

    /// How often its task left a CPU because it could not go on: while it runs, not at all.
    fn left(&self) -> u64 {
        self.switches("voluntary_ctxt_switches:")
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

    fn switches(&self, kind: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let count = status.lines().find_map(|line| line.strip_prefix(kind));
        count.unwrap().trim().parse().unwrap()
    }

    fn account(&self) -> Account {
        Account::of(&format!("/proc/{}/schedstat", self.child.id()))
    }

    /// How often its task left a CPU though it could have gone on.
    fn preempted(&self) -> u64 {
        self.switches("nonvoluntary_ctxt_switches:")
    }

    /// Without a shell, which would take most of the time.
    fn resume_unwatched(&self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    }
}

impl Account {
    fn of(file: &str) -> Self {
        let fields = fs::read_to_string(file).unwrap();
        let fields: Vec<u64> = fields.split_whitespace().map(|field| field.parse().unwrap()).collect();
        Self { run: Duration::from_nanos(fields[0]), wait: Duration::from_nanos(fields[1]), switches: fields[2] }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program knows nothing of a CPU before its first switch.
fn switch_once_on_each_cpu() {
    for cpu in 0..thread::available_parallelism().unwrap().get() {
        let taskset = Command::new("taskset").args(["--cpu-list", &cpu.to_string(), "sleep", "0.01"]).status();
        assert!(taskset.is_ok_and(|status| status.success()), "taskset runs on CPU {cpu}");
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
