//! What the fake says, read from JSON again whenever the file changes. A figure that a device does not have is not
//! supported by it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nvml_wrapper_sys::bindings::*;
use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Script {
    pub(crate) driver: String,
    /// Functions that do not return for as long as they are named here.
    #[serde(default)]
    pub(crate) hang: Vec<String>,
    /// A file that gets a line for each call.
    pub(crate) log: Option<PathBuf>,
    /// Seconds that functions take.
    #[serde(default)]
    pub(crate) delays: BTreeMap<String, f64>,
    /// What functions answer instead of what they would, `nvmlInit_v2` among them.
    #[serde(default)]
    pub(crate) faults: BTreeMap<String, Fault>,
    pub(crate) devices: Vec<Device>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Device {
    /// How many there are of this kind. `{}` in `uuid` and `pci` becomes the number of each.
    #[serde(default = "one")]
    pub(crate) count: usize,
    pub(crate) uuid: String,
    pub(crate) name: String,
    /// As NVML writes it: `00000000:3B:00.0`.
    pub(crate) pci: String,
    #[serde(default)]
    pub(crate) lost: bool,
    #[serde(default)]
    pub(crate) faults: BTreeMap<String, Fault>,
    /// Percent, one for each sample.
    pub(crate) utilization: Option<Series>,
    pub(crate) memory_utilization: Option<Series>,
    pub(crate) encoder: Option<Series>,
    pub(crate) decoder: Option<Series>,
    pub(crate) memory: Option<Memory>,
    pub(crate) power_milliwatts: Option<Series>,
    pub(crate) energy_millijoules: Option<Series>,
    pub(crate) sm_clock_megahertz: Option<Series>,
    pub(crate) memory_clock_megahertz: Option<Series>,
    pub(crate) temperature: Option<Series>,
    /// NVML's bits.
    pub(crate) throttle_reasons: Option<Series>,
    /// Nanoseconds by NVML's number of the policy.
    #[serde(default)]
    pub(crate) violations: BTreeMap<u32, Series>,
    pub(crate) ecc: Option<Ecc>,
    pub(crate) pcie_replays: Option<Series>,
    /// By NVML's number of the field.
    #[serde(default)]
    pub(crate) fields: BTreeMap<u32, Series>,
    /// By NVML's number of the metric. `None`: older than Hopper.
    pub(crate) gpm: Option<BTreeMap<u32, Series>>,
    pub(crate) mig: Option<Mig>,
    pub(crate) processes: Option<Vec<Process>>,
    #[serde(default)]
    pub(crate) xids: Vec<Xid>,
}

/// Memory in bytes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) reserved: u64,
    pub(crate) used: Series,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Ecc {
    pub(crate) volatile_corrected: Series,
    pub(crate) volatile_uncorrected: Series,
    pub(crate) aggregate_corrected: Series,
    pub(crate) aggregate_uncorrected: Series,
}

/// The GPU is in MIG mode.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mig {
    pub(crate) instances: Vec<Instance>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Instance {
    pub(crate) uuid: String,
    pub(crate) name: String,
    pub(crate) gpu_instance: u32,
    pub(crate) compute_instance: u32,
    pub(crate) memory: Memory,
    #[serde(default)]
    pub(crate) processes: Vec<Process>,
    pub(crate) gpm: Option<BTreeMap<u32, Series>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Bytes.
    pub(crate) memory: u64,
    /// Percent. Without: no sample, as for a process that does nothing.
    pub(crate) sm: Option<Series>,
    #[serde(default)]
    pub(crate) graphics: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Xid {
    pub(crate) xid: u64,
    /// Seconds after the library was loaded.
    #[serde(default)]
    pub(crate) at: f64,
}

/// One value, or one for each second since the library was loaded, over and over.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Series {
    Constant(f64),
    Steps(Vec<f64>),
}

impl Series {
    pub(crate) fn at(&self, since_load: Duration) -> f64 {
        match self {
            Self::Constant(value) => *value,
            Self::Steps(values) if values.is_empty() => 0.0,
            Self::Steps(values) => values[since_load.as_secs() as usize % values.len()],
        }
    }

    pub(crate) fn now(&self) -> f64 {
        self.at(since_load())
    }

    pub(crate) fn integer(&self) -> u64 {
        self.now() as u64
    }
}

/// NVML's errors by their names.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Fault {
    DriverNotLoaded,
    GpuIsLost,
    LibRmVersionMismatch,
    NoPermission,
    NotFound,
    NotSupported,
    ResetRequired,
    Uninitialized,
    Unknown,
}

impl Fault {
    pub(crate) const fn code(self) -> nvmlReturn_t {
        match self {
            Self::DriverNotLoaded => nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED,
            Self::GpuIsLost => nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST,
            Self::LibRmVersionMismatch => nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH,
            Self::NoPermission => nvmlReturn_enum_NVML_ERROR_NO_PERMISSION,
            Self::NotFound => nvmlReturn_enum_NVML_ERROR_NOT_FOUND,
            Self::NotSupported => nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED,
            Self::ResetRequired => nvmlReturn_enum_NVML_ERROR_RESET_REQUIRED,
            Self::Uninitialized => nvmlReturn_enum_NVML_ERROR_UNINITIALIZED,
            Self::Unknown => nvmlReturn_enum_NVML_ERROR_UNKNOWN,
        }
    }
}

fn one() -> usize {
    1
}

static LOADED: LazyLock<Instant> = LazyLock::new(Instant::now);
static CURRENT: Mutex<Option<Read>> = Mutex::new(None);

/// How long the file is taken to be as it was. The real library does not look at a file at each call, and whoever measures
/// an agent would measure that.
const LOOK_EVERY: Duration = Duration::from_millis(5);

struct Read {
    looked: Instant,
    path: PathBuf,
    stamp: Stamp,
    script: Option<Arc<Script>>,
}

/// Tells whether a file is still the same.
type Stamp = (u64, SystemTime, u64);

pub(crate) fn since_load() -> Duration {
    LOADED.elapsed()
}

/// NVML's clock: microseconds since the Unix epoch.
pub(crate) fn now_micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// `None`: there is no script, or none that can be understood; standard error says why.
pub(crate) fn current() -> Option<Arc<Script>> {
    let path = PathBuf::from(std::env::var_os("FAKE_NVML_SCRIPT")?);
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut former = current.as_mut().filter(|read| read.path == path);
    if let Some(read) = former.as_ref().filter(|read| read.looked.elapsed() < LOOK_EVERY) {
        return read.script.clone();
    }
    let (looked, stamp) = (Instant::now(), stamp(&path));
    if let Some(read) = former.as_mut().filter(|read| read.stamp == stamp) {
        read.looked = looked;
        return read.script.clone();
    }
    let text = std::fs::read_to_string(&path).map_err(|error| error.to_string());
    let script = text.and_then(|text| parse(&text)).map(Arc::new);
    if let Err(why) = &script {
        eprintln!("fake NVML: {}: {why}", path.display());
    }
    let script = script.ok();
    *current = Some(Read { looked, path, stamp, script: script.clone() });
    script
}

/// Writes the call down, and takes as long as the script has it for this function.
pub(crate) fn begin(function: &str) {
    LazyLock::force(&LOADED);
    let script = current();
    if let Some(path) = script.as_ref().and_then(|script| script.log.as_ref()) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path);
        if let Err(why) = log.and_then(|mut log| log.write_all(format!("{function}\n").as_bytes())) {
            eprintln!("fake NVML: {}: {why}", path.display());
        }
    }
    if let Some(delay) = script.and_then(|script| script.delays.get(function).copied()) {
        std::thread::sleep(Duration::from_secs_f64(delay));
    }
    while current().is_some_and(|script| script.hang.iter().any(|name| name == function)) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn stamp(path: &std::path::Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path);
    metadata.map_or((0, UNIX_EPOCH, 0), |file| (file.ino(), file.modified().unwrap_or(UNIX_EPOCH), file.len()))
}

fn parse(text: &str) -> Result<Script, String> {
    let mut script: Script = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let repeated = script.devices.iter().flat_map(|device| {
        (0..device.count).map(move |number| Device {
            uuid: device.uuid.replace("{}", &number.to_string()),
            pci: device.pci.replace("{}", &number.to_string()),
            ..device.clone()
        })
    });
    script.devices = repeated.collect();
    Ok(script)
}
