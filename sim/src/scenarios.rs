//! The scenarios that come with Ebb. Each one is a file that shows what can be said in one.

use crate::file;
use crate::scenario::Scenario;

const FILES: &[(&str, &str)] = &[
    ("bursty_training", include_str!("../scenarios/bursty_training.yaml")),
    ("steady", include_str!("../scenarios/steady.yaml")),
    ("gpu_burst", include_str!("../scenarios/gpu_burst.yaml")),
    ("spot_reclaim_storm", include_str!("../scenarios/spot_reclaim_storm.yaml")),
    ("zone_without_capacity", include_str!("../scenarios/zone_without_capacity.yaml")),
    ("pdb_never_opens", include_str!("../scenarios/pdb_never_opens.yaml")),
    ("thrash_bait", include_str!("../scenarios/thrash_bait.yaml")),
    ("hpa_and_ray_disagree", include_str!("../scenarios/hpa_and_ray_disagree.yaml")),
    ("a_day", include_str!("../scenarios/a_day.yaml")),
];

/// The flow's own example first.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(name, _)| *name)
}

/// `None`: there is none of this name.
pub fn named(name: &str) -> Option<Scenario> {
    let (name, text) = FILES.iter().find(|(known, _)| *known == name)?;
    Some(file::parse(name, text).unwrap_or_else(|problems| panic!("{name}.yaml is wrong: {problems:?}")))
}
