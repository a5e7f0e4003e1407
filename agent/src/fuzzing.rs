//! The door of `fuzz/` to those readers of outside text that nobody else outside this crate needs.

use std::time::Duration;

use crate::source::cgroup::{FigureFile, Figures};
use crate::source::pressure::{self, Pressure};
use crate::source::proc::{self, Memory, Stat};
use crate::source::{Malformed, ebpf};

pub fn stat(text: &str) -> Result<Stat, Malformed> {
    proc::parse_stat(text)
}

pub fn meminfo(text: &str) -> Result<Memory, Malformed> {
    proc::parse_meminfo(text)
}

pub fn schedstat(text: &str) -> Result<Duration, Malformed> {
    proc::parse_schedstat(text)
}

pub fn pressure(text: &str) -> Result<Pressure, Malformed> {
    pressure::parse(text)
}

/// What each of a cgroup's files would say, if it held this text.
pub fn cgroup_figures(text: &str) -> impl Iterator<Item = Result<Figures, Malformed>> {
    FigureFile::ALL.into_iter().map(move |file| {
        let mut figures = Figures::default();
        file.add(text, &mut figures).map(|()| figures)
    })
}

pub fn btf_offset(btf: &[u8], of: &str, member: &str) -> Option<u64> {
    ebpf::btf::offset(btf, of, member)
}
