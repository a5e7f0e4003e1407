//! A device's names and figures.

use std::os::raw::{c_char, c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::*;

use crate::script::{Memory, Series, now_micros, since_load};
use crate::{Answer, INVALID, UNSUPPORTED, call_on, handle_parts, put, put_all, put_some, put_text};

/// How often the driver samples utilization.
const SAMPLE_MICROS: u64 = 100_000;
/// How many samples the driver keeps.
const SAMPLES: u64 = 100;

fn integer(series: Option<&Series>) -> Option<c_uint> {
    series.map(|series| series.integer() as c_uint)
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetName(device: nvmlDevice_t, name: *mut c_char, length: c_uint) -> nvmlReturn_t {
    call_on("nvmlDeviceGetName", device, |device, instance| {
        put_text(name, length, instance.map_or(&device.name, |instance| &instance.name))
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetUUID(device: nvmlDevice_t, uuid: *mut c_char, length: c_uint) -> nvmlReturn_t {
    call_on("nvmlDeviceGetUUID", device, |device, instance| {
        put_text(uuid, length, instance.map_or(&device.uuid, |instance| &instance.uuid))
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetMinorNumber(device: nvmlDevice_t, minor: *mut c_uint) -> nvmlReturn_t {
    let (index, _) = handle_parts(device).unwrap_or_default();
    call_on("nvmlDeviceGetMinorNumber", device, |_, _| put(minor, index as c_uint))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetPciInfo_v3(device: nvmlDevice_t, pci: *mut nvmlPciInfo_t) -> nvmlReturn_t {
    call_on("nvmlDeviceGetPciInfo_v3", device, |device, _| {
        let mut parts = device.pci.split([':', '.']).map(|part| c_uint::from_str_radix(part, 16));
        let mut part = || parts.next().and_then(Result::ok).ok_or(INVALID);
        let mut info = nvmlPciInfo_t {
            busIdLegacy: [0; 16],
            domain: part()?,
            bus: part()?,
            device: part()?,
            pciDeviceId: 0x2330_10de,
            pciSubSystemId: 0,
            busId: [0; 32],
        };
        let (bus_id, room) = (info.busId.as_mut_ptr(), info.busId.len() as c_uint);
        put_text(bus_id, room, &device.pci)?;
        put(pci, info)
    })
}

/// The samples' times are whole tenths of a second, so that none is delivered twice.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetSamples(
    device: nvmlDevice_t,
    kind: nvmlSamplingType_t,
    last_seen: c_ulonglong,
    value_type: *mut nvmlValueType_t,
    count: *mut c_uint,
    samples: *mut nvmlSample_t,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetSamples", device, |device, instance| {
        let series = match kind {
            nvmlSamplingType_enum_NVML_GPU_UTILIZATION_SAMPLES => device.utilization.as_ref(),
            nvmlSamplingType_enum_NVML_MEMORY_UTILIZATION_SAMPLES => device.memory_utilization.as_ref(),
            _ => None,
        };
        // MIG's instances have no such buffer, nor has a GPU in that mode.
        let series = series.filter(|_| instance.is_none() && device.mig.is_none()).ok_or(UNSUPPORTED)?;
        let newest = now_micros() / SAMPLE_MICROS * SAMPLE_MICROS;
        let times = (0..SAMPLES).rev().map(|back| newest - back * SAMPLE_MICROS).filter(|time| *time > last_seen);
        let sample = |time| {
            let age = std::time::Duration::from_micros(newest - time);
            let value = series.at(since_load().saturating_sub(age)) as c_uint;
            nvmlSample_t { timeStamp: time, sampleValue: nvmlValue_t { uiVal: value } }
        };
        put(value_type, nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT)?;
        let all: Vec<_> = times.map(sample).collect();
        // Unlike other calls, this one has asking for their number succeed.
        if samples.is_null() { put(count, all.len() as c_uint) } else { put_all(samples, count, &all) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetUtilizationRates(
    device: nvmlDevice_t,
    rates: *mut nvmlUtilization_t,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetUtilizationRates", device, |device, instance| {
        let in_mig_mode = instance.is_some() || device.mig.is_some();
        let gpu = integer(device.utilization.as_ref()).filter(|_| !in_mig_mode).ok_or(UNSUPPORTED)?;
        put(rates, nvmlUtilization_t { gpu, memory: integer(device.memory_utilization.as_ref()).unwrap_or(0) })
    })
}

/// Encoder and decoder have the same form.
fn part_utilization(series: Option<&Series>, utilization: *mut c_uint, period: *mut c_uint) -> Answer {
    put_some(utilization, integer(series))?;
    put(period, SAMPLE_MICROS as c_uint)
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetEncoderUtilization(
    device: nvmlDevice_t,
    utilization: *mut c_uint,
    period: *mut c_uint,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetEncoderUtilization", device, |device, _| {
        part_utilization(device.encoder.as_ref(), utilization, period)
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetDecoderUtilization(
    device: nvmlDevice_t,
    utilization: *mut c_uint,
    period: *mut c_uint,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetDecoderUtilization", device, |device, _| {
        part_utilization(device.decoder.as_ref(), utilization, period)
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: nvmlDevice_t,
    memory: *mut nvmlMemory_v2_t,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetMemoryInfo_v2", device, |device, instance| {
        let version = (size_of::<nvmlMemory_v2_t>() | (2 << 24)) as c_uint;
        // SAFETY: NVML's callers hand over a structure whose version they have set.
        if unsafe { memory.as_ref() }.is_none_or(|memory| memory.version != version) {
            return Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        let of = instance.map(|instance| &instance.memory).or(device.memory.as_ref());
        let Memory { total, reserved, used } = of.ok_or(UNSUPPORTED)?;
        let used = used.integer();
        let free = total.saturating_sub(reserved + used);
        put(memory, nvmlMemory_v2_t { version, total: *total, reserved: *reserved, free, used })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetPowerUsage(device: nvmlDevice_t, milliwatts: *mut c_uint) -> nvmlReturn_t {
    call_on("nvmlDeviceGetPowerUsage", device, |device, _| {
        put_some(milliwatts, integer(device.power_milliwatts.as_ref()))
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetTotalEnergyConsumption(
    device: nvmlDevice_t,
    millijoules: *mut c_ulonglong,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetTotalEnergyConsumption", device, |device, _| {
        put_some(millijoules, device.energy_millijoules.as_ref().map(Series::integer))
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetClockInfo(
    device: nvmlDevice_t,
    clock: nvmlClockType_t,
    megahertz: *mut c_uint,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetClockInfo", device, |device, _| {
        let series = match clock {
            nvmlClockType_enum_NVML_CLOCK_SM => device.sm_clock_megahertz.as_ref(),
            nvmlClockType_enum_NVML_CLOCK_MEM => device.memory_clock_megahertz.as_ref(),
            _ => None,
        };
        put_some(megahertz, integer(series))
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    _sensor: nvmlTemperatureSensors_t,
    celsius: *mut c_uint,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetTemperature", device, |device, _| put_some(celsius, integer(device.temperature.as_ref())))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: nvmlDevice_t,
    reasons: *mut c_ulonglong,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetCurrentClocksThrottleReasons", device, |device, _| {
        put_some(reasons, device.throttle_reasons.as_ref().map(Series::integer))
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetViolationStatus(
    device: nvmlDevice_t,
    policy: nvmlPerfPolicyType_t,
    violation: *mut nvmlViolationTime_t,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetViolationStatus", device, |device, _| {
        let nanos = device.violations.get(&policy).map(Series::integer).ok_or(UNSUPPORTED)?;
        put(violation, nvmlViolationTime_t { referenceTime: now_micros(), violationTime: nanos })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: nvmlDevice_t,
    error: nvmlMemoryErrorType_t,
    counter: nvmlEccCounterType_t,
    count: *mut c_ulonglong,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetTotalEccErrors", device, |device, _| {
        let ecc = device.ecc.as_ref().ok_or(UNSUPPORTED)?;
        let corrected = error == nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_CORRECTED;
        let volatile = counter == nvmlEccCounterType_enum_NVML_VOLATILE_ECC;
        let series = match (volatile, corrected) {
            (true, true) => &ecc.volatile_corrected,
            (true, false) => &ecc.volatile_uncorrected,
            (false, true) => &ecc.aggregate_corrected,
            (false, false) => &ecc.aggregate_uncorrected,
        };
        put(count, series.integer())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetPcieReplayCounter(device: nvmlDevice_t, count: *mut c_uint) -> nvmlReturn_t {
    call_on("nvmlDeviceGetPcieReplayCounter", device, |device, _| {
        put_some(count, integer(device.pcie_replays.as_ref()))
    })
}
