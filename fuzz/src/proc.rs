//! The files of `/proc`: what is accepted says the same when it is written anew, and lines of others change nothing.

use std::fmt::Write;
use std::time::Duration;

use ebb_agent::fuzzing;
use ebb_agent::source::pressure::Pressure;
use ebb_agent::source::proc::{CpuTicks, Stat};

use crate::text;

pub fn stat(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok(stat) = fuzzing::stat(text) else { return };
    assert_eq!(fuzzing::stat(&written(&stat)).as_ref(), Ok(&stat));
    assert_eq!(fuzzing::stat(&format!("intr 1 2 3\n{text}")).as_ref(), Ok(&stat));
}

fn written(Stat { node, cpus, context_switches, .. }: &Stat) -> String {
    let mut text = String::new();
    let mut line = |number: &str, CpuTicks(ticks): &CpuTicks| {
        let ticks: Vec<_> = ticks.iter().map(u64::to_string).collect();
        writeln!(text, "cpu{number} {} 0 0", ticks.join(" ")).expect("a text takes anything");
    };
    line("", node);
    for (number, ticks) in cpus {
        line(&number.to_string(), ticks);
    }
    text + &format!("ctxt {context_switches}\n")
}

pub fn meminfo(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok(memory) = fuzzing::meminfo(text) else { return };
    let in_use = memory.total.saturating_sub(memory.free);
    assert!(memory.working_set <= in_use, "{memory:?}");
    assert!([memory.total, memory.available, memory.free].iter().all(|bytes| bytes % 1024 == 0), "{memory:?}");
    assert_eq!(fuzzing::meminfo(&format!("HugePages_Total:       0\n{text}")), Ok(memory));
}

pub fn schedstat(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok(waited) = fuzzing::schedstat(text) else { return };
    let backwards: String = text.lines().rev().flat_map(|line| [line, "\n"]).collect();
    assert_eq!(fuzzing::schedstat(&backwards), Ok(waited), "the order of CPUs");
    let one_more = format!("{backwards}cpu9 0 0 0 0 0 0 1 7 1\ndomain0 MC 3 1 2\n");
    assert_eq!(fuzzing::schedstat(&one_more), Ok(waited + Duration::from_nanos(7)));
}

pub fn pressure(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok(pressure) = fuzzing::pressure(text) else { return };
    assert_ne!(pressure, Pressure::default(), "accepted, and nothing in it");
    let line = |kind, total: Option<Duration>| {
        total.map_or(String::new(), |total| format!("{kind} avg10=0.00 total={}\n", total.as_micros()))
    };
    let written = line("some", pressure.some) + &line("full", pressure.full);
    assert_eq!(fuzzing::pressure(&written), Ok(pressure));
}
