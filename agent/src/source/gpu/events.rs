//! XIDs as NVML tells of them: waited for on a thread of their own, which ends with those who started it.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant as Monotonic};

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::{Device, Nvml};

use super::identity::PciAddress;

/// How long one wait lasts, and so how long the thread lives on when nobody needs it.
const WAIT: Duration = Duration::from_secs(1);
const STACK: usize = 256 << 10;

/// One XID. Of several at once NVML repeats the last one's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XidEvent {
    pub at: Monotonic,
    pub pci: PciAddress,
    pub xid: u32,
}

/// Tells of XIDs for as long as `wanted` lives.
pub(super) fn spawn(
    nvml: Arc<Nvml>,
    gpus: Vec<(u32, PciAddress)>,
    wanted: Weak<()>,
    events: SyncSender<XidEvent>,
) -> std::io::Result<()> {
    let run = move || {
        let Some((set, devices)) = register(&nvml, &gpus) else { return };
        while wanted.strong_count() > 0 {
            match next(&set, &devices) {
                Ok(Some(event)) => {
                    // Full: the sampler is stuck, and the kernel's log has them too.
                    let _dropped = events.try_send(event);
                }
                Ok(None) | Err(NvmlError::Timeout) => {}
                Err(error) => {
                    // As when a GPU is lost: then each wait fails at once.
                    tracing::debug!(%error, "no XID from NVML");
                    std::thread::sleep(WAIT);
                }
            }
        }
    };
    std::thread::Builder::new().name("nvml-events".into()).stack_size(STACK).spawn(run).map(drop)
}

/// A set of the events of all GPUs that have them. One that refuses takes the whole set with it, so it is left out and
/// the rest begun again.
fn register<'nvml>(
    nvml: &'nvml Nvml,
    gpus: &[(u32, PciAddress)],
) -> Option<(EventSet<'nvml>, Vec<(Device<'nvml>, PciAddress)>)> {
    let device = |(index, pci): &(u32, PciAddress)| Some((nvml.device_by_index(*index).ok()?, *pci));
    let has_xids = |device: &Device<'nvml>| {
        device.supported_event_types().is_ok_and(|types| types.contains(EventTypes::CRITICAL_XID_ERROR))
    };
    let mut devices: Vec<_> = gpus.iter().filter_map(device).filter(|(device, _)| has_xids(device)).collect();
    while !devices.is_empty() {
        let set = nvml.create_event_set().ok()?;
        let registered = devices.iter().enumerate().try_fold(set, |set, (number, (device, _))| {
            let refused = |error| {
                tracing::debug!(%error, "no events from a GPU");
                number
            };
            device.register_events(EventTypes::CRITICAL_XID_ERROR, set).map_err(refused)
        });
        match registered {
            Ok(set) => return Some((set, devices)),
            Err(number) => drop(devices.remove(number)),
        }
    }
    None
}

fn next(set: &EventSet<'_>, devices: &[(Device<'_>, PciAddress)]) -> Result<Option<XidEvent>, NvmlError> {
    let event = set.wait(u32::try_from(WAIT.as_millis()).unwrap_or(u32::MAX))?;
    let Some(XidError::Value(xid)) = event.event_data else { return Ok(None) };
    // By handle: a GPU that was lost does not tell its UUID any more.
    // SAFETY: the handles are compared, not used.
    let known = devices.iter().find(|(device, _)| unsafe { device.handle() == event.device.handle() });
    let xid = u32::try_from(xid).ok();
    Ok(known.zip(xid).map(|((_, pci), xid)| XidEvent { at: Monotonic::now(), pci: *pci, xid }))
}
