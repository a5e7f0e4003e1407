//! The stints that go on while the counters are read: a task that never leaves its CPU is counted nowhere else. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ebb_abi::Cpu;

/// Stints shorter than this may be missing from a reading until the next one.
const SHORT_NS: u64 = 1_000_000;

/// What two looks at the CPUs say about the time between them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ongoing {
    /// By cgroup: how long the stints have gone on that were open all the time between the looks. What was read
    /// between them has none of it (see [`Cpu::since_ns`]).
    pub(super) run_ns: BTreeMap<u64, u64>,
    /// Cgroups with a stint that ended between the looks and was not short.
    pub(super) ended: BTreeSet<u64>,
    /// Of all CPUs in the idle task, with what goes on.
    pub(super) idle_ns: u64,
}

impl Ongoing {
    /// `now_ns`: a moment before the second look.
    pub(super) fn between(before: &[Cpu], after: &[Cpu], now_ns: u64) -> Self {
        let mut ongoing = Self::default();
        for (before, after) in before.iter().zip(after) {
            // The first look: what it says besides the stint cannot be of a later one, if the second agrees on the stint.
            let open = before.since_ns != 0 && before.since_ns == after.since_ns;
            let length = now_ns.saturating_sub(before.since_ns);
            match (open, before.pid) {
                (true, 0) => ongoing.idle_ns += before.idle_ns + length,
                (true, _) => {
                    *ongoing.run_ns.entry(before.cgroup).or_default() += length;
                    ongoing.idle_ns += before.idle_ns;
                }
                (false, pid) => {
                    ongoing.idle_ns += after.idle_ns;
                    if pid != 0 && before.since_ns != 0 && length >= SHORT_NS {
                        ongoing.ended.insert(before.cgroup);
                    }
                }
            }
        }
        ongoing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: u64 = 5_000_000;

    fn cpu(since_ns: u64, pid: u64, cgroup: u64, idle_ns: u64) -> Cpu {
        Cpu { since_ns, pid, cgroup, idle_ns, ..Cpu::default() }
    }

    fn check(before: Cpu, after: Cpu, run_ns: &[(u64, u64)], ended: &[u64], idle_ns: u64) {
        let found = Ongoing::between(&[before], &[after], BEGIN + 2_000_000);
        let (run_ns, ended) = (run_ns.iter().copied().collect(), ended.iter().copied().collect());
        assert_eq!(found, Ongoing { run_ns, ended, idle_ns }, "{before:?}, then {after:?}");
    }

    #[test]
    fn only_a_stint_that_was_open_at_both_looks_is_added() {
        let running = cpu(BEGIN, 7, 3, 10);
        check(running, running, &[(3, 2_000_000)], &[], 10);
        check(running, cpu(BEGIN + 1_500_000, 8, 4, 10), &[], &[3], 10);
        check(running, cpu(0, 7, 3, 10), &[], &[3], 10);
        check(cpu(0, 7, 3, 10), cpu(BEGIN, 7, 3, 10), &[], &[], 10);
        // One that was short is left to the next reading.
        check(cpu(BEGIN + 1_900_000, 7, 3, 10), cpu(BEGIN + 1_950_000, 8, 4, 10), &[], &[], 10);
        // It began after the time that is told.
        let late = cpu(BEGIN + 3_000_000, 7, 3, 10);
        check(late, late, &[(3, 0)], &[], 10);
    }

    #[test]
    fn an_idle_cpu_is_nobodys() {
        let idle = cpu(BEGIN, 0, 1, 10);
        check(idle, idle, &[], &[], 2_000_010);
        check(idle, cpu(BEGIN + 1_500_000, 8, 4, 1_500_010), &[], &[], 1_500_010);
    }
}
