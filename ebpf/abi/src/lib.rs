//! What the kernel programs write and the agent reads, laid out the same on both sides.
//! Whole `u64`s only, so that there is no padding to leak and no value that one side could not read.

#![no_std]

/// What one CPU remembers between two switches, and what it had to leave uncounted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// The task that came on. 0, the idle task, also until the first switch after loading.
    pub pid: u64,
    /// When it came on.
    pub since_ns: u64,
    /// Its own `run_delay` when it came on. The kernel adds the wait for this stint just after.
    pub run_delay_ns: u64,
    /// Stints without a counter to go to: the table of cgroups was full.
    pub full: u64,
    /// Stints which ended before they began, by the clock or by `run_delay`.
    pub backwards: u64,
    /// Stints whose end was not shown to the program: the task that left the CPU is not the one that came on.
    pub missed: u64,
}

/// What the tasks of one cgroup did on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub run_ns: u64,
    pub wait_ns: u64,
    pub switches: u64,
}

const _: () = assert!(size_of::<Cpu>() == 48 && align_of::<Cpu>() == 8);
const _: () = assert!(size_of::<Usage>() == 24 && align_of::<Usage>() == 8);
