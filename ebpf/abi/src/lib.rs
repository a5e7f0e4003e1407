//! What the kernel programs write and the agent reads, laid out the same on both sides.
//! Whole `u64`s only, so that there is no padding to leak and no value that one side could not read.

#![no_std]

/// What one CPU remembers between two switches, and what it had to leave uncounted.
///
/// The kernel copies it to a reader word by word, upwards, while the CPU may be at a switch. The order of the fields
/// and of the stores in the program makes a copy usable: see `since_ns`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// When the stint began that is going on. 0: none is known, since a switch is under way or was not seen yet. It is
    /// the first field to be cleared at a switch, before anything is charged, and the last to be set again. So a stint
    /// that two copies agree about has been charged to nobody in all the time between them.
    pub since_ns: u64,
    /// The task that came on. 0: the idle task.
    pub pid: u64,
    /// The id of its cgroup when it came on.
    pub cgroup: u64,
    /// Its own `run_delay` when it last left a CPU. The kernel adds the wait for this stint just after the switch.
    pub run_delay_ns: u64,
    /// In the idle task, without what is going on.
    pub idle_ns: u64,
    /// In stints which no cgroup was charged for, for one of the reasons below.
    pub lost_ns: u64,
    /// Stints without a counter to go to: the table of cgroups was full.
    pub full: u64,
    /// Stints which ended before they began, by the clock or by `run_delay`.
    pub backwards: u64,
    /// Stints whose end was not shown to the program: the task that left the CPU is not the one that came on.
    pub missed: u64,
    /// Of all tasks on this CPU, before stints which have ended.
    pub wait_ns: u64,
    /// Stints that ended, by how long their task had waited for them: see [`bucket`].
    pub latency: [u64; BUCKETS],
}

/// What the tasks of one cgroup did on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub run_ns: u64,
    pub wait_ns: u64,
    /// Stints that ended though their task could have gone on, by whose task came next: see [`Preemptor`].
    pub preemptions: [u64; 4],
    /// As in [`Cpu::latency`].
    pub latency: [u64; BUCKETS],
}

/// Who took a CPU from a task, as an index into [`Usage::preemptions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preemptor {
    SamePod,
    OtherPod,
    /// In a cgroup that belongs to no pod.
    System,
    /// In a cgroup that user space has not said the owner of.
    Unknown,
}

/// Buckets of a wait: eleven with a bound, and one for what is longer.
pub const BUCKETS: usize = 12;

/// The longest wait, in nanoseconds, that belongs into this bucket: 1 µs, 4 µs, 16 µs and so on to 1.048576 s. Few, as
/// each takes 8 bytes for each cgroup and CPU; powers of four still tell a wait for one other task's slice, some
/// milliseconds, from being put off for several.
pub const fn bound_ns(bucket: usize) -> Option<u64> {
    if bucket < BUCKETS - 1 { Some(1_000 << (2 * bucket)) } else { None }
}

/// The bucket that a wait belongs into: by halves, as it is found at every switch. Always below [`BUCKETS`].
#[inline(always)]
pub const fn bucket(wait_ns: u64) -> usize {
    let (mut rest, mut bucket) = (wait_ns.saturating_sub(1), 0);
    if rest >= 1_000 << 14 {
        (rest, bucket) = (rest >> 16, 8);
    }
    if rest >= 1_000 << 6 {
        (rest, bucket) = (rest >> 8, bucket + 4);
    }
    if rest >= 1_000 << 2 {
        (rest, bucket) = (rest >> 4, bucket + 2);
    }
    if rest >= 1_000 {
        bucket += 1;
    }
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// What is remembered of tasks that are off the CPUs: one word each, so that it is read and written whole. The place
/// is given by the low bits of the pid, the task by its high bits in the word; of two tasks for one place the later one
/// has it.
pub mod departed {
    /// 512 KiB. Pids are given out in turn, so that up to this many tasks rarely meet.
    pub const PLACES: u32 = 1 << 16;
    /// Linux has no more than 2^22 pids (`PID_MAX_LIMIT`), so six of their bits are not in the place. The seventh bit is
    /// set in every word: a place that nothing was written to is no task's.
    const TAG_BITS: u32 = 7;

    #[inline(always)]
    const fn tag(pid: u64) -> u64 {
        pid >> 16 | 1 << 6
    }

    /// Neighbours are spread over cache lines: they are threads of one process more often than not, on several CPUs.
    #[inline(always)]
    pub const fn place(pid: u64) -> u32 {
        let low = pid as u32 & (PLACES - 1);
        low >> 3 | (low & 7) << 13
    }

    /// 57 bits of nanoseconds: four years of waiting.
    #[inline(always)]
    pub const fn word(pid: u64, run_delay_ns: u64) -> u64 {
        run_delay_ns << TAG_BITS | tag(pid)
    }

    /// `None`: the word is another task's.
    #[inline(always)]
    pub const fn run_delay_ns(word: u64, pid: u64) -> Option<u64> {
        if word & ((1 << TAG_BITS) - 1) == tag(pid) { Some(word >> TAG_BITS) } else { None }
    }
}

const _: () = assert!(size_of::<Cpu>() == 176 && align_of::<Cpu>() == 8);
const _: () = assert!(size_of::<Usage>() == 144 && align_of::<Usage>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_in_the_first_bucket_whose_bound_it_does_not_pass() {
        let linear = |wait| (0..BUCKETS).find(|&bucket| bound_ns(bucket).is_none_or(|bound| wait <= bound));
        let bounds = (0..BUCKETS).filter_map(bound_ns).flat_map(|bound| [bound - 1, bound, bound + 1]);
        for wait in bounds.chain([0, 1, 500, 2_000_000_000, 1 << 40, u64::MAX]) {
            assert_eq!(Some(bucket(wait)), linear(wait), "{wait} ns");
        }
        assert_eq!(bound_ns(BUCKETS - 2), Some(1_048_576_000));
    }

    #[test]
    fn a_place_keeps_a_task_until_another_takes_it() {
        let (pid, other) = (70_001, 70_001 + (1 << 16));
        assert_eq!(departed::place(pid), departed::place(other));
        let word = departed::word(pid, 123_456_789);
        assert_eq!(departed::run_delay_ns(word, pid), Some(123_456_789));
        assert_eq!(departed::run_delay_ns(word, other), None);
        assert_eq!(departed::run_delay_ns(0, 1), None);
        // Places of up to 65536 tasks in a row are all different.
        let mut taken = [false; departed::PLACES as usize];
        for pid in 1_000_000..1_000_000 + u64::from(departed::PLACES) {
            assert!(!core::mem::replace(&mut taken[departed::place(pid) as usize], true), "{pid}");
        }
    }
}
