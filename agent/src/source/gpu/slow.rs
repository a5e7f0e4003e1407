//! Figures that change by the hour, or cost more to ask: errors, repairs, and what the driver says the GPU needs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant as Monotonic};

use ebb_core::units::Permille;
use ebb_core::xid::RecoveryAction;
use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, PerformancePolicy};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::structs::device::FieldId;

use super::answers::Answers;
use super::figures::{Ecc, NVLINK_ERRORS, Slow};

/// NVML's numbers of fields (`nvml.h`, `NVML_FI_DEV_…`).
const REMAPPED_CORRECTED: (u32, &str) = (142, "rows remapped after corrected errors");
const REMAPPED_UNCORRECTED: (u32, &str) = (143, "rows remapped after uncorrected errors");
const REMAP_PENDING: (u32, &str) = (144, "pending row remapping");
const REMAP_FAILURE: (u32, &str) = (145, "failed row remapping");
const RECOVERY_ACTION: (u32, &str) = (230, "recovery action");
pub(super) const MEMORY_TEMPERATURE: (u32, &str) = (82, "memory temperature");

/// NVML's performance policies that name a cause.
const POLICIES: [(PerformancePolicy, &str, &str); 6] = [
    (PerformancePolicy::Power, "power", "time throttled by power"),
    (PerformancePolicy::Thermal, "thermal", "time throttled by heat"),
    (PerformancePolicy::SyncBoost, "sync_boost", "time throttled by sync boost"),
    (PerformancePolicy::BoardLimit, "board_limit", "time throttled by board limit"),
    (PerformancePolicy::LowUtilization, "low_utilization", "time throttled by low utilization"),
    (PerformancePolicy::Reliability, "reliability", "time throttled by reliability"),
];

pub(super) fn read(device: &Device<'_>, answers: &mut Answers) -> Slow {
    let [corrected, uncorrected, pending, failure, recovery] =
        [REMAPPED_CORRECTED, REMAPPED_UNCORRECTED, REMAP_PENDING, REMAP_FAILURE, RECOVERY_ACTION];
    let nvlink = NVLINK_ERRORS;
    let wanted: Vec<_> = [corrected, uncorrected, pending, failure, recovery].into_iter().chain(nvlink).collect();
    let fields = fields(device, answers, &wanted);
    let field = |(number, _): (u32, &str)| fields.get(&number).copied();
    let percent = |percent: u32| Permille::from_ratio(f64::from(percent), 100.0);
    let encoder = answers.ask("encoder utilization", || device.encoder_utilization());
    let decoder = answers.ask("decoder utilization", || device.decoder_utilization());
    Slow {
        read: Some(Monotonic::now()),
        encoder_busy: encoder.and_then(|encoder| percent(encoder.utilization)),
        decoder_busy: decoder.and_then(|decoder| percent(decoder.utilization)),
        ecc: ecc(device, answers),
        remapped_rows_corrected: field(corrected),
        remapped_rows_uncorrected: field(uncorrected),
        row_remap_pending: field(pending).map(|pending| pending != 0),
        row_remap_failure: field(failure).map(|failure| failure != 0),
        nvlink_errors: nvlink.into_iter().filter_map(|row| Some((row.1, field(row)?))).collect(),
        pcie_replays: answers.ask("PCIe replays", || device.pcie_replay_counter()).map(u64::from),
        recovery: field(recovery).map(RecoveryAction::from_nvml),
        throttled: throttled(device, answers),
    }
}

/// The values of those fields that the GPU has, by their numbers: one call for all.
pub(super) fn fields(device: &Device<'_>, answers: &mut Answers, wanted: &[(u32, &'static str)]) -> BTreeMap<u32, u64> {
    let asked: Vec<_> = wanted.iter().filter(|(_, name)| answers.supports(name)).collect();
    if asked.is_empty() {
        return BTreeMap::new();
    }
    let numbers: Vec<_> = asked.iter().map(|(number, _)| FieldId(*number)).collect();
    let values = answers.ask("field values", || device.field_values_for(&numbers)).unwrap_or_default();
    let mut fields = BTreeMap::new();
    for ((number, name), value) in asked.into_iter().zip(values) {
        match value.and_then(|value| value.value) {
            Ok(value) => fields.extend(count(value).map(|value| (*number, value))),
            Err(error) => answers.failed(name, error),
        }
    }
    fields
}

fn count(value: SampleValue) -> Option<u64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be a count")]
    match value {
        SampleValue::U32(value) => Some(value.into()),
        SampleValue::U64(value) => Some(value),
        SampleValue::I64(value) => value.try_into().ok(),
        SampleValue::F64(value) => (value >= 0.0 && value <= u64::MAX as f64).then_some(value as u64),
    }
}

fn ecc(device: &Device<'_>, answers: &mut Answers) -> Ecc {
    let mut errors =
        |name, error: MemoryError, counter: EccCounter| answers.ask(name, || device.total_ecc_errors(error, counter));
    Ecc {
        volatile_corrected: errors("corrected volatile ECC", MemoryError::Corrected, EccCounter::Volatile),
        volatile_uncorrected: errors("uncorrected volatile ECC", MemoryError::Uncorrected, EccCounter::Volatile),
        aggregate_corrected: errors("corrected aggregate ECC", MemoryError::Corrected, EccCounter::Aggregate),
        aggregate_uncorrected: errors("uncorrected aggregate ECC", MemoryError::Uncorrected, EccCounter::Aggregate),
    }
}

fn throttled(device: &Device<'_>, answers: &mut Answers) -> BTreeMap<&'static str, Duration> {
    let time = |(policy, reason, name): (PerformancePolicy, &'static str, &'static str)| {
        let violation = answers.ask(name, || device.violation_status(policy))?;
        Some((reason, Duration::from_nanos(violation.violation_time)))
    };
    POLICIES.into_iter().filter_map(time).collect()
}
