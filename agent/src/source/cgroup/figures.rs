//! What the files of one cgroup say, in both versions. Each file is read once for all its figures.

use std::time::Duration;

use crate::source::Malformed;
use crate::source::pressure::{self, Pressures};

/// What a cgroup has used. `None`: this cgroup, or this kernel, does not count it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// CPU time since it was made.
    pub cpu: Option<Duration>,
    pub cpu_user: Option<Duration>,
    pub cpu_system: Option<Duration>,
    /// Only where a limit is set, or could be.
    pub throttling: Option<Throttling>,
    pub memory: Memory,
    /// For how long its tasks could not go on (version 2).
    pub pressure: Option<Pressures>,
}

/// CPU bandwidth control (`Documentation/scheduler/sched-bwc.rst`), since the cgroup was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Enforcement intervals in which it wanted to run.
    pub periods: u64,
    /// Those in which it used up its quota.
    pub throttled_periods: u64,
    /// Time its tasks were held back.
    pub throttled: Duration,
}

/// In bytes, but for the kills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that is charged to it, page cache and all.
    pub total: Option<u64>,
    /// Memory of its own, without a file behind it.
    pub anon: Option<u64>,
    /// Page cache.
    pub file: Option<u64>,
    /// Page cache that was not touched lately.
    pub inactive_file: Option<u64>,
    /// The kernel's own for it: stacks, page tables, slab. Since Linux 5.18 in one figure.
    pub kernel: Option<u64>,
    pub swap: Option<u64>,
    /// Processes the kernel killed in it for want of memory.
    pub oom_kills: Option<u64>,
}

impl Memory {
    /// The kubelet's formula (cAdvisor's `setMemoryStats`): all, without the page cache that was not touched lately.
    pub fn working_set(&self) -> Option<u64> {
        Some(self.total?.saturating_sub(self.inactive_file?))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FigureFile {
    CpuStat,
    MemoryCurrent,
    MemoryStat,
    MemoryEvents,
    MemorySwapCurrent,
    CpuPressure,
    IoPressure,
    IrqPressure,
    MemoryPressure,
    CpuacctUsageV1,
    CpuStatV1,
    MemoryUsageV1,
    MemoryStatV1,
    MemoryOomControlV1,
}

impl FigureFile {
    pub(crate) const ALL: [Self; 14] = [
        Self::CpuStat,
        Self::MemoryCurrent,
        Self::MemoryStat,
        Self::MemoryEvents,
        Self::MemorySwapCurrent,
        Self::CpuPressure,
        Self::IoPressure,
        Self::IrqPressure,
        Self::MemoryPressure,
        Self::CpuacctUsageV1,
        Self::CpuStatV1,
        Self::MemoryUsageV1,
        Self::MemoryStatV1,
        Self::MemoryOomControlV1,
    ];
    /// Of every cgroup of version 2.
    pub(super) const V2: &[Self] =
        &[Self::CpuStat, Self::MemoryCurrent, Self::MemoryStat, Self::MemoryEvents, Self::MemorySwapCurrent];
    /// Of a pod's own cgroup besides: four more files for each container would say little more.
    pub(super) const V2_PODS: &[Self] = &[Self::CpuPressure, Self::IoPressure, Self::IrqPressure, Self::MemoryPressure];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::CpuStat | Self::CpuStatV1 => "cpu.stat",
            Self::MemoryCurrent => "memory.current",
            Self::MemoryStat | Self::MemoryStatV1 => "memory.stat",
            Self::MemoryEvents => "memory.events",
            Self::MemorySwapCurrent => "memory.swap.current",
            Self::CpuPressure => "cpu.pressure",
            Self::IoPressure => "io.pressure",
            Self::IrqPressure => "irq.pressure",
            Self::MemoryPressure => "memory.pressure",
            Self::CpuacctUsageV1 => "cpuacct.usage",
            Self::MemoryUsageV1 => "memory.usage_in_bytes",
            Self::MemoryOomControlV1 => "memory.oom_control",
        }
    }

    /// Adds what this file says. What is in the file but cannot be understood is refused.
    pub(crate) fn add(self, text: &str, figures: &mut Figures) -> Result<(), Malformed> {
        let keys = || Keys(text);
        match self {
            Self::CpuStat => {
                figures.cpu = Some(Duration::from_micros(keys().required("usage_usec")?));
                figures.cpu_user = keys().optional("user_usec")?.map(Duration::from_micros);
                figures.cpu_system = keys().optional("system_usec")?.map(Duration::from_micros);
                figures.throttling = throttling(text, "throttled_usec", Duration::from_micros)?;
            }
            Self::CpuStatV1 => figures.throttling = throttling(text, "throttled_time", Duration::from_nanos)?,
            Self::CpuacctUsageV1 => figures.cpu = Some(Duration::from_nanos(number(text)?)),
            Self::MemoryCurrent | Self::MemoryUsageV1 => figures.memory.total = Some(number(text)?),
            Self::MemorySwapCurrent => figures.memory.swap = Some(number(text)?),
            Self::MemoryStat => {
                figures.memory.anon = keys().optional("anon")?;
                figures.memory.file = keys().optional("file")?;
                figures.memory.kernel = keys().optional("kernel")?;
                figures.memory.inactive_file = Some(keys().required("inactive_file")?);
            }
            Self::MemoryStatV1 => {
                // The hierarchy's sums. Version 1 calls anonymous memory "rss"; that is what it counts.
                figures.memory.anon = keys().optional("total_rss")?;
                figures.memory.file = keys().optional("total_cache")?;
                figures.memory.swap = keys().optional("total_swap")?;
                figures.memory.inactive_file = Some(keys().required("total_inactive_file")?);
            }
            Self::MemoryEvents | Self::MemoryOomControlV1 => figures.memory.oom_kills = keys().optional("oom_kill")?,
            Self::CpuPressure | Self::IoPressure | Self::IrqPressure | Self::MemoryPressure => {
                let stalled = pressure::parse(text)?;
                let pressures = figures.pressure.get_or_insert_default();
                match self {
                    Self::CpuPressure => pressures.cpu = stalled,
                    Self::IoPressure => pressures.io = stalled,
                    Self::IrqPressure => pressures.irq = Some(stalled),
                    _ => pressures.memory = stalled,
                }
            }
        }
        Ok(())
    }
}

fn throttling(text: &str, time: &'static str, unit: fn(u64) -> Duration) -> Result<Option<Throttling>, Malformed> {
    // The root, and cgroups without the controller, have none.
    let Some(periods) = Keys(text).optional("nr_periods")? else { return Ok(None) };
    let throttled_periods = Keys(text).required("nr_throttled")?;
    let throttled = unit(Keys(text).required(time)?);
    Ok(Some(Throttling { periods, throttled_periods, throttled }))
}

fn number(text: &str) -> Result<u64, Malformed> {
    text.trim_end().parse().map_err(|_| Malformed("number"))
}

/// A file of lines `KEY NUMBER`.
struct Keys<'a>(&'a str);

impl Keys<'_> {
    fn optional(&self, key: &'static str) -> Result<Option<u64>, Malformed> {
        let number = self.0.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        number.map(|number| number.parse().map_err(|_| Malformed(key))).transpose()
    }

    fn required(&self, key: &'static str) -> Result<u64, Malformed> {
        self.optional(key)?.ok_or(Malformed(key))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(files: &[(FigureFile, &str)]) -> Figures {
        let mut figures = Figures::default();
        for (file, text) in files {
            file.add(text, &mut figures).unwrap();
        }
        figures
    }

    #[test]
    fn version_2_says_all_in_a_few_files() {
        let pressure =
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n";
        let found = read(&[
            (
                FigureFile::CpuStat,
                "usage_usec 900\nuser_usec 600\nsystem_usec 300\nnr_periods 5\nnr_throttled 2\nthrottled_usec 4000\n",
            ),
            (FigureFile::MemoryCurrent, "1000\n"),
            (FigureFile::MemoryStat, "anon 300\nfile 600\nkernel 50\nfile_mapped 1\ninactive_file 250\n"),
            (FigureFile::MemoryEvents, "low 0\noom 1\noom_kill 4\noom_group_kill 0\n"),
            (FigureFile::MemorySwapCurrent, "20\n"),
            (FigureFile::MemoryPressure, pressure),
        ]);
        assert_eq!(found.cpu, Some(Duration::from_micros(900)));
        assert_eq!(found.cpu_system, Some(Duration::from_micros(300)));
        let throttling = Throttling { periods: 5, throttled_periods: 2, throttled: Duration::from_millis(4) };
        assert_eq!(found.throttling, Some(throttling));
        assert_eq!(found.memory.working_set(), Some(750));
        let Memory { anon, file, kernel, swap, oom_kills, .. } = found.memory;
        assert_eq!((anon, file, kernel, swap, oom_kills), (Some(300), Some(600), Some(50), Some(20), Some(4)));
        assert_eq!(found.pressure.unwrap().memory.full, Some(Duration::from_micros(3)));
    }

    #[test]
    fn version_1_says_it_in_others() {
        let found = read(&[
            (FigureFile::CpuacctUsageV1, "9\n"),
            (FigureFile::CpuStatV1, "nr_periods 3\nnr_throttled 1\nthrottled_time 5000\n"),
            (FigureFile::MemoryUsageV1, "1000\n"),
            (
                FigureFile::MemoryStatV1,
                "cache 1\nrss 2\ninactive_file 3\ntotal_cache 600\ntotal_rss 300\ntotal_swap 8\ntotal_inactive_file 1400\n",
            ),
            (FigureFile::MemoryOomControlV1, "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
        ]);
        assert_eq!(found.cpu, Some(Duration::from_nanos(9)));
        assert_eq!(found.throttling.unwrap().throttled, Duration::from_micros(5));
        assert_eq!(found.memory.working_set(), Some(0), "never below");
        assert_eq!((found.memory.anon, found.memory.swap), (Some(300), Some(8)));
        assert_eq!(found.memory.oom_kills, Some(2));
    }

    #[test]
    fn what_is_not_there_is_unknown_and_what_is_broken_is_refused() {
        let found = read(&[(FigureFile::CpuStat, "usage_usec 5\n")]);
        assert_eq!((found.cpu_user, found.throttling), (None, None));
        assert_eq!(found.memory.working_set(), None);
        let check = |file: FigureFile, text, missing| {
            assert_eq!(file.add(text, &mut Figures::default()), Err(Malformed(missing)), "{text}");
        };
        check(FigureFile::CpuStat, "", "usage_usec");
        check(FigureFile::CpuStat, "usage_usec many\n", "usage_usec");
        check(FigureFile::CpuStat, "usage_usec 1\nnr_periods 2\n", "nr_throttled");
        check(FigureFile::MemoryCurrent, "max\n", "number");
        check(FigureFile::MemoryStat, "anon 5\n", "inactive_file");
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(
            text in "(usage_usec|nr_periods|anon|total_inactive_file|some|total=|[0-9]{0,25}|[ \n]|\\PC){0,20}",
        ) {
            for file in FigureFile::ALL {
                let _any_answer = file.add(&text, &mut Figures::default());
            }
        }

        #[test]
        fn what_is_parsed_is_what_was_written(usage: u64, periods: u64, throttled: u64, total: u64, inactive: u64) {
            let found = read(&[
                (
                    FigureFile::CpuStat,
                    &format!("usage_usec {usage}\nnr_periods {periods}\nnr_throttled 1\nthrottled_usec {throttled}\n"),
                ),
                (FigureFile::MemoryCurrent, &format!("{total}\n")),
                (FigureFile::MemoryStat, &format!("inactive_file {inactive}\n")),
            ]);
            prop_assert_eq!(found.cpu, Some(Duration::from_micros(usage)));
            prop_assert_eq!(found.throttling.unwrap().throttled, Duration::from_micros(throttled));
            prop_assert_eq!(found.memory.working_set(), Some(total.saturating_sub(inactive)));
        }
    }
}
