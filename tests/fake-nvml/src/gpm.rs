//! GPM: two samples, and what happened between them. Hopper and newer.

use std::collections::BTreeMap;
use std::os::raw::c_uint;

use nvml_wrapper_sys::bindings::*;

use crate::script::{Series, current};
use crate::{Answer, INVALID, UNSUPPORTED, call, call_on, handle_parts, put};

/// What a sample is of; nothing before it was taken.
#[derive(Clone, Copy, Default, PartialEq)]
struct Sample(Option<(usize, Option<u32>)>);

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlGpmQueryDeviceSupport(
    device: nvmlDevice_t,
    support: *mut nvmlGpmSupport_t,
) -> nvmlReturn_t {
    call_on("nvmlGpmQueryDeviceSupport", device, |device, _| {
        // SAFETY: NVML's callers hand over a structure whose version they have set.
        if unsafe { support.as_ref() }.is_none_or(|support| support.version != NVML_GPM_SUPPORT_VERSION) {
            return Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        let supported = c_uint::from(device.gpm.is_some());
        put(support, nvmlGpmSupport_t { version: NVML_GPM_SUPPORT_VERSION, isSupportedDevice: supported })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlGpmSampleAlloc(sample: *mut nvmlGpmSample_t) -> nvmlReturn_t {
    call("nvmlGpmSampleAlloc", |_| put(sample, Box::into_raw(Box::<Sample>::default()).cast()))
}

/// # Safety
/// `sample` comes from `nvmlGpmSampleAlloc` and is freed once.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlGpmSampleFree(sample: nvmlGpmSample_t) -> nvmlReturn_t {
    if !sample.is_null() {
        // SAFETY: as the caller promises.
        drop(unsafe { Box::from_raw(sample.cast::<Sample>()) });
    }
    nvmlReturn_enum_NVML_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlGpmSampleGet(device: nvmlDevice_t, sample: nvmlGpmSample_t) -> nvmlReturn_t {
    let parts = handle_parts(device);
    call_on("nvmlGpmSampleGet", device, |device, _| {
        device.gpm.as_ref().ok_or(UNSUPPORTED)?;
        let (number, _) = parts.ok_or(INVALID)?;
        put(sample.cast(), Sample(Some((number, None))))
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlGpmMigSampleGet(
    device: nvmlDevice_t,
    gpu_instance: c_uint,
    sample: nvmlGpmSample_t,
) -> nvmlReturn_t {
    let parts = handle_parts(device);
    call_on("nvmlGpmMigSampleGet", device, |device, _| {
        device.gpm.as_ref().ok_or(UNSUPPORTED)?;
        let mig = device.mig.as_ref().ok_or(UNSUPPORTED)?;
        if !mig.instances.iter().any(|instance| instance.gpu_instance == gpu_instance) {
            return Err(INVALID);
        }
        let (number, _) = parts.ok_or(INVALID)?;
        put(sample.cast(), Sample(Some((number, Some(gpu_instance)))))
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlGpmMetricsGet(request: *mut nvmlGpmMetricsGet_t) -> nvmlReturn_t {
    call("nvmlGpmMetricsGet", |_| {
        // SAFETY: NVML's callers hand over a request that can be read and written, with samples of this library's.
        let request = unsafe { request.as_mut() }.ok_or(INVALID)?;
        if request.version != NVML_GPM_METRICS_GET_VERSION {
            return Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        answer(request)
    })
}

fn answer(request: &mut nvmlGpmMetricsGet_t) -> Answer {
    // SAFETY: as in `nvmlGpmMetricsGet`.
    let [before, now] = [request.sample1, request.sample2]
        .map(|sample| unsafe { sample.cast::<Sample>().as_ref() }.copied().unwrap_or_default());
    let Some((device, instance)) = now.0.filter(|_| before == now) else { return Err(INVALID) };
    let script = current().ok_or(nvmlReturn_enum_NVML_ERROR_UNKNOWN)?;
    let device = script.devices.get(device).ok_or(INVALID)?;
    let figures: Option<&BTreeMap<u32, Series>> = match (instance, &device.mig) {
        (Some(wanted), Some(mig)) => {
            mig.instances.iter().find(|one| one.gpu_instance == wanted).and_then(|one| one.gpm.as_ref())
        }
        _ => device.gpm.as_ref(),
    };
    for metric in request.metrics.iter_mut().take(request.numMetrics as usize) {
        let value = figures.and_then(|figures| figures.get(&metric.metricId));
        metric.nvmlReturn = if value.is_some() { nvmlReturn_enum_NVML_SUCCESS } else { UNSUPPORTED };
        metric.value = value.map_or(0.0, Series::now);
    }
    Ok(())
}
