//! A fake `libnvidia-ml.so.1`: NVML's real C ABI, whose answers come from the script that `FAKE_NVML_SCRIPT` names.
//! It knows nothing of Ebb. A script may be rewritten at any time; see `script` for what one can say, and
//! `scenarios/` for some.

#![expect(non_upper_case_globals, reason = "the names are NVML's")]

mod device;
mod event;
mod field;
mod gpm;
mod mig;
mod process;
mod script;

use std::os::raw::{c_char, c_uint};

use nvml_wrapper_sys::bindings::*;

use crate::script::{Device, Fault, Instance, Script};

type Answer = Result<(), nvmlReturn_t>;

const UNSUPPORTED: nvmlReturn_t = Fault::NotSupported.code();
const INVALID: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
const TOO_SMALL: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;

/// Where every call goes through: takes its time, hangs and fails as the script has it for this function.
fn call(function: &str, answer: impl FnOnce(&Script) -> Answer) -> nvmlReturn_t {
    script::begin(function);
    let result = script::current().ok_or(nvmlReturn_enum_NVML_ERROR_UNKNOWN).and_then(|script| {
        match script.faults.get(function) {
            Some(fault) => Err(fault.code()),
            None => answer(&script),
        }
    });
    result.err().unwrap_or(nvmlReturn_enum_NVML_SUCCESS)
}

/// As [`call`], for the device behind the handle; of a MIG instance, its parent and itself.
fn call_on(
    function: &str,
    handle: nvmlDevice_t,
    answer: impl FnOnce(&Device, Option<&Instance>) -> Answer,
) -> nvmlReturn_t {
    call(function, |script| {
        let (index, instance) = handle_parts(handle).ok_or(INVALID)?;
        let device = script.devices.get(index).ok_or(INVALID)?;
        let instance = match instance {
            Some(instance) => Some(device.mig.as_ref().and_then(|mig| mig.instances.get(instance)).ok_or(INVALID)?),
            None => None,
        };
        if device.lost {
            return Err(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST);
        }
        match device.faults.get(function) {
            Some(fault) => Err(fault.code()),
            None => answer(device, instance),
        }
    })
}

/// A handle is the device's number plus one, and above its 16 bits the instance's plus one.
fn handle(device: usize, instance: Option<usize>) -> nvmlDevice_t {
    std::ptr::without_provenance_mut((instance.map_or(0, |instance| instance + 1) << 16) | (device + 1))
}

fn handle_parts(handle: nvmlDevice_t) -> Option<(usize, Option<usize>)> {
    let device = (handle.addr() & 0xffff).checked_sub(1)?;
    Some((device, (handle.addr() >> 16).checked_sub(1)))
}

/// Writes through a pointer of the caller's.
fn put<T>(out: *mut T, value: T) -> Answer {
    if out.is_null() {
        return Err(INVALID);
    }
    // SAFETY: not null, and NVML's callers hand over pointers that can be written to.
    unsafe { out.write(value) };
    Ok(())
}

fn put_some<T>(out: *mut T, value: Option<T>) -> Answer {
    put(out, value.ok_or(UNSUPPORTED)?)
}

/// Writes a string with its end mark.
fn put_text(out: *mut c_char, length: c_uint, text: &str) -> Answer {
    if out.is_null() {
        return Err(INVALID);
    }
    if text.len() >= length as usize {
        return Err(TOO_SMALL);
    }
    // SAFETY: there is room for the text and its end, by the check before.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), out, text.len());
        out.add(text.len()).write(0);
    }
    Ok(())
}

/// Writes as many as fit in an array of the caller's; too little room (or none, to ask how many there are) is an
/// error that says how many.
fn put_all<T: Copy>(out: *mut T, room: *mut c_uint, values: &[T]) -> Answer {
    // SAFETY: NVML's callers hand over a count that can be read.
    let available = unsafe { room.as_ref() }.copied().ok_or(INVALID)? as usize;
    put(room, values.len() as c_uint)?;
    if values.is_empty() {
        return Ok(());
    }
    if out.is_null() || available < values.len() {
        return Err(TOO_SMALL);
    }
    // SAFETY: the array has room for that many, as its owner said.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), out, values.len()) };
    Ok(())
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    call("nvmlInit_v2", |_| Ok(()))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> nvmlReturn_t {
    nvmlInit_v2()
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    call("nvmlShutdown", |_| Ok(()))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    call("nvmlSystemGetDriverVersion", |script| put_text(version, length, &script.driver))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    call("nvmlDeviceGetCount_v2", |script| put(count, script.devices.len() as c_uint))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut nvmlDevice_t) -> nvmlReturn_t {
    call("nvmlDeviceGetHandleByIndex_v2", |script| {
        let found = script.devices.get(index as usize).ok_or(INVALID)?;
        if found.lost {
            return Err(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST);
        }
        put(device, handle(index as usize, None))
    })
}
