//! What has been told binds what is told next: no total falls, and no time is told twice. Pure.

use std::collections::{BTreeMap, HashMap};

use ebb_abi::Usage;

/// The totals that were last told.
#[derive(Debug, Default)]
pub(super) struct Told {
    run_ns: HashMap<u64, u64>,
    idle_ns: u64,
    lost_ns: u64,
}

impl Told {
    /// Takes totals as they were found, and makes of them what can be told.
    ///
    /// A total is found lower than it was told when a stint ended while it was read, which mends itself, or when the
    /// end of a stint was not shown to the program: as long as it seemed to go on it was its task's, and then it is lost.
    /// What was told of it stays told, so just that much is not told as lost, until the total has caught up. A cgroup
    /// that is no longer found is forgotten.
    pub(super) fn next(&mut self, cgroups: &mut BTreeMap<u64, Usage>, idle_ns: &mut u64, lost_ns: &mut u64) {
        let last = std::mem::take(&mut self.run_ns);
        let mut ahead_ns = raise(idle_ns, self.idle_ns);
        for (&id, usage) in cgroups.iter_mut() {
            ahead_ns += raise(&mut usage.run_ns, last.get(&id).copied().unwrap_or(0));
            self.run_ns.insert(id, usage.run_ns);
        }
        *lost_ns = lost_ns.saturating_sub(ahead_ns);
        raise(lost_ns, self.lost_ns);
        (self.idle_ns, self.lost_ns) = (*idle_ns, *lost_ns);
    }

    /// A cgroup of the same id begins anew.
    pub(super) fn forget(&mut self, id: u64) {
        self.run_ns.remove(&id);
    }
}

/// Returns by how much it was less.
fn raise(total: &mut u64, least: u64) -> u64 {
    let ahead = least.saturating_sub(*total);
    *total += ahead;
    ahead
}

#[cfg(test)]
mod tests {
    use ebb_abi::Cpu;
    use proptest::prelude::*;

    use super::super::ongoing::Ongoing;
    use super::*;

    /// What the kernel program does with one CPU. A task's cgroup has its pid for an id.
    #[derive(Default)]
    struct Kernel {
        now_ns: u64,
        cpu: Cpu,
        /// Who is on the CPU, whether the program saw it come or not.
        current: u64,
        usage: BTreeMap<u64, Usage>,
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Pass(u64),
        Switch { next: u64, shown: bool },
    }

    impl Kernel {
        fn go(&mut self, steps: &[Step]) {
            for &step in steps {
                match step {
                    Step::Pass(ns) => self.now_ns += ns,
                    Step::Switch { next, shown } => {
                        // No two switches of a CPU are at the same time.
                        self.now_ns += 1;
                        let prev = std::mem::replace(&mut self.current, next);
                        if shown {
                            self.switch(prev, next);
                        }
                    }
                }
            }
        }

        fn switch(&mut self, prev: u64, next: u64) {
            let ran_ns = self.now_ns - self.cpu.since_ns;
            match prev {
                prev if prev != self.cpu.pid => self.cpu.lost_ns += ran_ns,
                0 => self.cpu.idle_ns += ran_ns,
                prev => self.usage.entry(prev).or_default().run_ns += ran_ns,
            }
            self.cpu = Cpu { since_ns: self.now_ns, pid: next, cgroup: next, ..self.cpu };
        }
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let switch = (0_u64..4, prop::bool::weighted(0.7)).prop_map(|(next, shown)| Step::Switch { next, shown });
        prop::collection::vec(prop_oneof![(1_u64..3_000_000).prop_map(Step::Pass), switch], 0..6)
    }

    proptest! {
        #[test]
        fn no_total_falls_and_their_sum_is_at_most_the_time(readings in prop::collection::vec([steps(), steps(), steps()], 1..20)) {
            // Time 0 would be no stint at all.
            let mut kernel = Kernel { now_ns: 1, cpu: Cpu { since_ns: 1, ..Cpu::default() }, ..Kernel::default() };
            let mut told = Told::default();
            let mut last: (BTreeMap<u64, u64>, u64, u64) = Default::default();
            for [meanwhile, first, second] in readings {
                kernel.go(&meanwhile);
                let before = kernel.cpu;
                kernel.go(&first);
                let (mut cgroups, now) = (kernel.usage.clone(), kernel.now_ns);
                kernel.go(&second);
                let mut found = Ongoing::between(&[before], &[kernel.cpu], now);
                for (id, run_ns) in found.run_ns {
                    cgroups.entry(id).or_default().run_ns += run_ns;
                }
                let mut lost_ns = kernel.cpu.lost_ns;
                told.next(&mut cgroups, &mut found.idle_ns, &mut lost_ns);

                let run: BTreeMap<u64, u64> = cgroups.iter().map(|(&id, usage)| (id, usage.run_ns)).collect();
                let sum = run.values().sum::<u64>() + found.idle_ns + lost_ns;
                prop_assert!(sum < kernel.now_ns, "{run:?}, {} idle and {lost_ns} lost in {}", found.idle_ns, kernel.now_ns);
                // One whose first stint was lost is in no table.
                let fell = |(id, before): (&u64, &u64)| run.get(id).is_some_and(|now| now < before);
                prop_assert!(!last.0.iter().any(fell), "{run:?} after {last:?}");
                prop_assert!(found.idle_ns >= last.1 && lost_ns >= last.2, "{} and {lost_ns} after {last:?}", found.idle_ns);
                last = (run, found.idle_ns, lost_ns);
            }
        }
    }
}
