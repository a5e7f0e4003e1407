//! Field values: figures by number, each of which succeeds or fails alone.

use std::os::raw::c_int;

use nvml_wrapper_sys::bindings::*;

use crate::script::{Series, now_micros};
use crate::{INVALID, UNSUPPORTED, call_on};

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetFieldValues(
    device: nvmlDevice_t,
    count: c_int,
    values: *mut nvmlFieldValue_t,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetFieldValues", device, |device, _| {
        let count = usize::try_from(count).ok().filter(|count| *count > 0 && !values.is_null()).ok_or(INVALID)?;
        // SAFETY: NVML's callers hand over an array of that many values, whose field numbers they have set.
        for value in unsafe { std::slice::from_raw_parts_mut(values, count) } {
            let number = device.fields.get(&value.fieldId).map(Series::integer);
            value.timestamp = now_micros() as i64;
            value.latencyUsec = 0;
            value.valueType = nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
            value.nvmlReturn = if number.is_some() { nvmlReturn_enum_NVML_SUCCESS } else { UNSUPPORTED };
            value.value = nvmlValue_t { ullVal: number.unwrap_or(0) };
        }
        Ok(())
    })
}
