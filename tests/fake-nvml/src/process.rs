//! Processes that hold a device, and how much of it each used.

use std::os::raw::{c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::*;

use crate::script::{Device, Instance, Process, now_micros};
use crate::{Answer, UNSUPPORTED, call_on, put_all};

/// How NVML says that a process belongs to no instance.
const NO_INSTANCE: c_uint = c_uint::MAX;

fn running(
    device: &Device,
    instance: Option<&Instance>,
    graphics: bool,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> Answer {
    let processes = match instance {
        Some(instance) => &instance.processes,
        None => device.processes.as_ref().ok_or(UNSUPPORTED)?,
    };
    let info = |process: &Process| nvmlProcessInfo_t {
        pid: process.pid,
        usedGpuMemory: process.memory,
        gpuInstanceId: instance.map_or(NO_INSTANCE, |instance| instance.gpu_instance),
        computeInstanceId: instance.map_or(NO_INSTANCE, |instance| instance.compute_instance),
    };
    let wanted = processes.iter().filter(|process| process.graphics == graphics);
    put_all(infos, count, &wanted.map(info).collect::<Vec<_>>())
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetComputeRunningProcesses_v3", device, |device, instance| {
        running(device, instance, false, count, infos)
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetGraphicsRunningProcesses_v3", device, |device, instance| {
        running(device, instance, true, count, infos)
    })
}

/// One sample for each process that did something since; none at all is "not found".
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetProcessUtilization(
    device: nvmlDevice_t,
    samples: *mut nvmlProcessUtilizationSample_t,
    count: *mut c_uint,
    last_seen: c_ulonglong,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetProcessUtilization", device, |device, _| {
        let processes = device.processes.as_ref().filter(|_| device.mig.is_none()).ok_or(UNSUPPORTED)?;
        let now = now_micros();
        let sample = |process: &Process| {
            Some(nvmlProcessUtilizationSample_t {
                pid: process.pid,
                timeStamp: now,
                smUtil: process.sm.as_ref()?.now() as c_uint,
                memUtil: 0,
                encUtil: 0,
                decUtil: 0,
            })
        };
        let new: Vec<_> =
            processes.iter().filter_map(sample).filter(|sample| sample.smUtil > 0 && now > last_seen).collect();
        if new.is_empty() {
            return Err(nvmlReturn_enum_NVML_ERROR_NOT_FOUND);
        }
        put_all(samples, count, &new)
    })
}
