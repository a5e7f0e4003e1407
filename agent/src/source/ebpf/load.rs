//! Loads the object with one of its programs attached. What may be wrong with that is said here as well.

use std::path::PathBuf;
use std::{fs, io};

use aya::maps::MapError;
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, BtfError, Ebpf, EbpfError, EbpfLoader, Endianness};

use super::btf;

/// Rebuilt and compared by `cargo xtask ebpf`.
pub(super) const OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../ebpf/ebb.bpf.o");

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "read the kernel's types from {}: eBPF needs a kernel with CONFIG_DEBUG_INFO_BTF, and /sys mounted",
        btf::PATH
    )]
    Types(#[source] io::Error),
    #[error("parse the kernel's types in {}", btf::PATH)]
    Parse(#[source] BtfError),
    #[error("find {of}.{member} in the kernel's types: eBPF needs a kernel with CONFIG_SCHED_INFO")]
    Field { of: &'static str, member: &'static str },
    #[error(
        "load a kernel program without {missing}: grant the capabilities BPF and PERFMON (before Linux 5.8: SYS_ADMIN)"
    )]
    Rights { missing: &'static str },
    #[error(
        "load the kernel program on Linux {kernel}: it needs 5.10 or later (before 5.11 with the \
         capability SYS_RESOURCE, or room to lock memory), and neither lockdown nor seccomp in its way"
    )]
    Load { kernel: String, source: Box<EbpfError> },
    #[error("attach the kernel program {program}")]
    Attach { program: &'static str, source: Box<ProgramError> },
    #[error("read {}, in which launches of CUDA kernels should be counted", path.display())]
    Library { path: PathBuf, source: io::Error },
    #[error(
        "count the calls of {function} in {}: it must be libcuda, and the kernel needs CONFIG_UPROBES and asks for the \
         capability SYS_ADMIN (some older ones, for PERFMON)",
        library.display()
    )]
    Probe { function: &'static str, library: PathBuf, source: Box<ProgramError> },
    #[error("read or change the kernel program's {map}")]
    Map { map: &'static str, source: MapError },
    #[error("ask the kernel what its program costs")]
    Cost(#[source] Box<ProgramError>),
}

impl Error {
    /// A label for metrics, from a closed set.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Types(_) | Self::Parse(_) => "btf",
            Self::Field { .. } => "field",
            Self::Rights { .. } => "rights",
            Self::Load { .. } => "load",
            Self::Attach { .. } => "attach",
            Self::Library { .. } => "missing",
            Self::Probe { .. } => "probe",
            Self::Map { .. } => "map",
            Self::Cost(_) => "cost",
        }
    }
}

pub(super) fn load(program: &'static str, max_cgroups: u32) -> Result<Ebpf, Error> {
    let types = fs::read(btf::PATH).map_err(Error::Types)?;
    let offsets = offsets(&types)?;
    let types = Btf::parse(&types, Endianness::default()).map_err(Error::Parse)?;
    check_rights()?;

    let mut loader = EbpfLoader::new();
    loader.btf(None); // Nothing in the object is relocated by BTF.
    for (name, offset) in &offsets {
        loader.override_global(name, offset, true);
    }
    for map in ["OWNER", "USAGE"] {
        loader.map_max_entries(map, max_cgroups);
    }
    let mut programs = loader.load(OBJECT).map_err(refused)?;
    let tracepoint: &mut BtfTracePoint =
        programs.program_mut(program).expect("the object holds this program").try_into().expect("on a tracepoint");
    tracepoint.load("sched_switch", &types).map_err(|source| refused(source.into()))?;
    tracepoint.attach().map_err(|source| Error::Attach { program, source: source.into() })?;
    Ok(programs)
}

/// The program's constants and what they are on this kernel.
fn offsets(types: &[u8]) -> Result<[(&'static str, u64); 7], Error> {
    let offset = |of, member| btf::offset(types, of, member).ok_or(Error::Field { of, member });
    // Linux 5.14 gave it its underscores.
    let state = offset("task_struct", "__state").or_else(|_| offset("task_struct", "state"))?;
    Ok([
        ("PID", offset("task_struct", "pid")?),
        ("RUN_DELAY", offset("task_struct", "sched_info")? + offset("sched_info", "run_delay")?),
        ("STATE", state),
        ("CGROUPS", offset("task_struct", "cgroups")?),
        ("DFL_CGRP", offset("css_set", "dfl_cgrp")?),
        ("KN", offset("cgroup", "kn")?),
        ("ID", offset("kernfs_node", "id")?),
    ])
}

pub(super) fn refused(source: EbpfError) -> Error {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "of unknown release".into());
    Error::Load { kernel: kernel.trim_end().into(), source: source.into() }
}

/// The kernel's own refusal would not say what is missing.
pub(super) fn check_rights() -> Result<(), Error> {
    match fs::read_to_string("/proc/self/status").ok().and_then(|status| missing_rights(&status)) {
        Some(missing) => Err(Error::Rights { missing }),
        None => Ok(()),
    }
}

/// Which of the needed rights the effective set in `/proc/<pid>/status` lacks. `None` also when it does not say.
fn missing_rights(status: &str) -> Option<&'static str> {
    const SYS_ADMIN: u64 = 1 << 21;
    const PERFMON: u64 = 1 << 38;
    const BPF: u64 = 1 << 39;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let set = u64::from_str_radix(set.trim(), 16).ok()?;
    // SYS_ADMIN stands for both.
    match (set & (SYS_ADMIN | BPF) != 0, set & (SYS_ADMIN | PERFMON) != 0) {
        (true, true) => None,
        (true, false) => Some("CAP_PERFMON"),
        (false, true) => Some("CAP_BPF"),
        (false, false) => Some("CAP_BPF and CAP_PERFMON"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_rights_are_named() {
        let check = |set: &str, missing| {
            assert_eq!(missing_rights(&format!("Name:\tebb-agent\nCapEff:\t{set}\nCapBnd:\t0\n")), missing, "{set}")
        };
        check("0000000000000000", Some("CAP_BPF and CAP_PERFMON"));
        check("0000008000000000", Some("CAP_PERFMON"));
        check("0000004000000000", Some("CAP_BPF"));
        check("000000c000000000", None);
        check("0000000000200000", None);
        check("000001ffffffffff", None);
        assert_eq!(missing_rights("Name:\tebb-agent\n"), None);
    }
}
