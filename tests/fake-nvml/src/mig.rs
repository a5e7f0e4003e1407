//! MIG: one GPU cut into instances, each with a handle of its own.

use std::os::raw::c_uint;

use nvml_wrapper_sys::bindings::*;

use crate::{INVALID, UNSUPPORTED, call_on, handle, handle_parts, put};

/// As on A100 and H100.
const MOST_INSTANCES: c_uint = 7;

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetMigMode", device, |device, _| {
        let mode = c_uint::from(device.mig.is_some());
        put(current, mode)?;
        put(pending, mode)
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: nvmlDevice_t, count: *mut c_uint) -> nvmlReturn_t {
    call_on("nvmlDeviceGetMaxMigDeviceCount", device, |device, _| {
        put(count, if device.mig.is_some() { MOST_INSTANCES } else { 0 })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: nvmlDevice_t,
    index: c_uint,
    instance: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    let parts = handle_parts(device);
    call_on("nvmlDeviceGetMigDeviceHandleByIndex", device, |device, _| {
        let (number, _) = parts.ok_or(INVALID)?;
        let mig = device.mig.as_ref().ok_or(UNSUPPORTED)?;
        if index as usize >= mig.instances.len() {
            return Err(nvmlReturn_enum_NVML_ERROR_NOT_FOUND);
        }
        put(instance, handle(number, Some(index as usize)))
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetGpuInstanceId(device: nvmlDevice_t, id: *mut c_uint) -> nvmlReturn_t {
    call_on("nvmlDeviceGetGpuInstanceId", device, |_, instance| put(id, instance.ok_or(INVALID)?.gpu_instance))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetComputeInstanceId(device: nvmlDevice_t, id: *mut c_uint) -> nvmlReturn_t {
    call_on("nvmlDeviceGetComputeInstanceId", device, |_, instance| put(id, instance.ok_or(INVALID)?.compute_instance))
}
