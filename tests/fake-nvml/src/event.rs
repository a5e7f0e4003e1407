//! XID events. As the real ones do, those that come together all carry the code of the last.

use std::os::raw::{c_uint, c_ulonglong};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::*;

use crate::script::{current, since_load};
use crate::{INVALID, call, call_on, handle_parts, put};

/// The real library waits for the driver; this one looks whether the script has changed, seldom enough not to be what is
/// measured of an agent.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Default)]
struct Set {
    /// Numbers of devices.
    registered: Vec<usize>,
    /// Events that were taken in and not handed out: a device and its code.
    waiting: Vec<(usize, u64)>,
}

/// By handle less one. A freed one's place stays empty.
static SETS: Mutex<Vec<Option<Set>>> = Mutex::new(Vec::new());
/// How many XIDs of each device were handed out, whatever set they went to.
static DELIVERED: LazyLock<Mutex<Vec<usize>>> = LazyLock::new(Mutex::default);

fn in_set<T>(set: nvmlEventSet_t, on: impl FnOnce(&mut Set) -> T) -> Result<T, nvmlReturn_t> {
    let number = set.addr().checked_sub(1).ok_or(INVALID)?;
    let mut sets = SETS.lock().unwrap_or_else(PoisonError::into_inner);
    sets.get_mut(number).and_then(Option::as_mut).map(on).ok_or(INVALID)
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t {
    call("nvmlEventSetCreate", |_| {
        let mut sets = SETS.lock().unwrap_or_else(PoisonError::into_inner);
        sets.push(Some(Set::default()));
        put(set, std::ptr::without_provenance_mut(sets.len()))
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    call("nvmlEventSetFree", |_| {
        let number = set.addr().checked_sub(1).ok_or(INVALID)?;
        let mut sets = SETS.lock().unwrap_or_else(PoisonError::into_inner);
        *sets.get_mut(number).ok_or(INVALID)? = None;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: nvmlDevice_t,
    types: *mut c_ulonglong,
) -> nvmlReturn_t {
    call_on("nvmlDeviceGetSupportedEventTypes", device, |_, _| {
        put(types, c_ulonglong::from(nvmlEventTypeXidCriticalError))
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    _types: c_ulonglong,
    set: nvmlEventSet_t,
) -> nvmlReturn_t {
    let parts = handle_parts(device);
    call_on("nvmlDeviceRegisterEvents", device, |_, _| {
        let (number, _) = parts.ok_or(INVALID)?;
        in_set(set, |set| set.registered.push(number))
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    timeout_millis: c_uint,
) -> nvmlReturn_t {
    let deadline = Instant::now() + Duration::from_millis(timeout_millis.into());
    call("nvmlEventSetWait_v2", |_| {
        loop {
            if let Some((device, xid)) = in_set(set, next)? {
                let event = nvmlEventData_t {
                    device: crate::handle(device, None),
                    eventType: nvmlEventTypeXidCriticalError.into(),
                    eventData: xid,
                    gpuInstanceId: c_uint::MAX,
                    computeInstanceId: c_uint::MAX,
                };
                return put(data, event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(nvmlReturn_enum_NVML_ERROR_TIMEOUT);
            }
            let next = in_set(set, until_next)?.unwrap_or(LOOK_EVERY);
            std::thread::sleep(next.min(LOOK_EVERY).min(left));
        }
    })
}

/// How long until the next one is due. Never nothing, or nobody else would have a turn.
fn until_next(set: &mut Set) -> Option<Duration> {
    let script = current()?;
    let devices = set.registered.iter().filter_map(|number| script.devices.get(*number));
    let all = devices.flat_map(|device| &device.xids).map(|xid| xid.at - since_load().as_secs_f64());
    let coming = all.filter(|seconds| *seconds > 0.0).min_by(f64::total_cmp)?;
    Some(Duration::from_secs_f64(coming).max(Duration::from_millis(1)))
}

fn next(set: &mut Set) -> Option<(usize, u64)> {
    let script = current()?;
    let mut delivered = DELIVERED.lock().unwrap_or_else(PoisonError::into_inner);
    for number in set.registered.clone() {
        let Some(device) = script.devices.get(number) else { continue };
        if delivered.len() <= number {
            delivered.resize(number + 1, 0);
        }
        let due = device.xids.iter().filter(|xid| since_load().as_secs_f64() >= xid.at).count();
        let new = due.saturating_sub(delivered[number]);
        let last = device.xids.get(due.wrapping_sub(1)).map(|xid| xid.xid);
        set.waiting.extend(last.into_iter().flat_map(|xid| std::iter::repeat_n((number, xid), new)));
        delivered[number] = due;
    }
    (!set.waiting.is_empty()).then(|| set.waiting.remove(0))
}
