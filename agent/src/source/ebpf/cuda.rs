//! Launches of CUDA kernels by cgroup, counted where processes call libcuda: what is left to see where NVML is blind,
//! as it is for the containers that share a GPU or a MIG instance.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use aya::maps::{MapData, PerCpuArray, PerCpuHashMap};
use aya::programs::uprobe::{UProbeError, UProbeScope};
use aya::programs::{ProgramError, UProbe};
use aya::{Ebpf, EbpfLoader};

use super::absent_is_fine;
use super::load::{Error, OBJECT, check_rights, refused};

const PROGRAM: &str = "ebb_cuda_launch";

/// Each launches one kernel, or one graph of them. Those with a suffix are what programs call that were compiled for a
/// default stream of each thread. In libcuda 535.261.03 no two have an address in common, and `cuGetProcAddress`, which
/// CUDA's runtime calls, returns these addresses and no others.
const FUNCTIONS: [&str; 8] = [
    "cuLaunchKernel",
    "cuLaunchKernel_ptsz",
    "cuLaunchKernelEx",
    "cuLaunchKernelEx_ptsz",
    "cuLaunchCooperativeKernel",
    "cuLaunchCooperativeKernel_ptsz",
    "cuGraphLaunch",
    "cuGraphLaunch_ptsz",
];

/// Counts while it lives; dropping it takes the probes away.
pub struct CudaLaunches {
    _programs: Ebpf,
    launches: PerCpuHashMap<MapData, u64, u64>,
    dropped: PerCpuArray<MapData, u64>,
}

/// Totals since the probes were attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launches {
    /// By cgroup id.
    pub cgroups: HashMap<u64, u64>,
    /// Of cgroups that found no room.
    pub dropped: u64,
}

impl CudaLaunches {
    /// Counts the calls of every process, present and future, that maps this very file, for up to `max_cgroups` cgroups.
    pub fn attach(library: &Path, max_cgroups: u32) -> Result<Self, Error> {
        let unreadable = |source| Error::Library { path: library.to_owned(), source };
        // The whole path, as aya looks a bare name up where the dynamic linker would.
        let library = library.canonicalize().map_err(unreadable)?;
        File::open(&library).map_err(unreadable)?;
        check_rights()?;

        let mut loader = EbpfLoader::new();
        loader.btf(None).map_max_entries("LAUNCHES", max_cgroups);
        // The other program's, and large.
        loader.map_max_entries("DEPARTED", 1);
        let mut programs = loader.load(OBJECT).map_err(refused)?;
        let of = |map| move |source| Error::Map { map, source };
        let mut take = |name| programs.take_map(name).expect("the object defines this map");
        let launches = take("LAUNCHES").try_into().map_err(of("LAUNCHES"))?;
        let dropped = take("LAUNCHES_DROPPED").try_into().map_err(of("LAUNCHES_DROPPED"))?;

        let probe: &mut UProbe =
            programs.program_mut(PROGRAM).expect("the object holds this program").try_into().expect("a uprobe");
        probe.load().map_err(|source| refused(source.into()))?;
        for function in FUNCTIONS {
            match probe.attach(function, &library, UProbeScope::AllProcesses) {
                Ok(_) => {}
                // An older library has fewer, but always the first.
                Err(ProgramError::UProbeError(UProbeError::SymbolError { .. })) if function != FUNCTIONS[0] => {
                    tracing::info!(function, library = %library.display(), "not in this library");
                }
                Err(source) => return Err(Error::Probe { function, library, source: source.into() }),
            }
        }
        Ok(Self { _programs: programs, launches, dropped })
    }

    pub fn read(&self) -> Result<Launches, Error> {
        let entries = self.launches.iter().map(|entry| entry.map(|(id, cpus)| (id, cpus.iter().sum())));
        let cgroups = entries.collect::<Result<_, _>>().map_err(|source| Error::Map { map: "LAUNCHES", source })?;
        let dropped = self.dropped.get(&0, 0).map_err(|source| Error::Map { map: "LAUNCHES_DROPPED", source })?;
        Ok(Launches { cgroups, dropped: dropped.iter().sum() })
    }

    /// As [`Scheduler::forget`](super::Scheduler::forget).
    pub fn forget(&mut self, id: u64) -> Result<(), Error> {
        absent_is_fine(self.launches.remove(&id)).map_err(|source| Error::Map { map: "LAUNCHES", source })
    }
}
