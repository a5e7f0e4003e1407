//! Amounts of what pods ask for and nodes offer.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};

use crate::units::{InvalidQuantity, parse_quantity_milli};

/// The name Kubernetes gives NVIDIA's GPUs.
pub const NVIDIA_GPU: &str = "nvidia.com/gpu";
const CPU: &str = "cpu";
/// Names that nearly all amounts go by: nobody keeps copies of these.
const COMMON: [&str; 5] = [CPU, "memory", "pods", "ephemeral-storage", NVIDIA_GPU];

/// Amounts by resource name: `cpu` in thousandths of a core, everything else in its own unit (bytes, devices, pods).
///
/// A name that is absent stands for zero, so that comparing and subtracting need no special cases. In the order of the
/// names; no map, because every pod has one of these, with three amounts in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, u64>", into = "BTreeMap<String, u64>")]
pub struct Resources(Vec<(Cow<'static, str>, u64)>);

impl Resources {
    /// Reads a Kubernetes resource list.
    pub fn from_list(list: &BTreeMap<String, Quantity>) -> Result<Self, InvalidQuantity> {
        Self::from_texts(list.iter().map(|(name, quantity)| (name.as_str(), quantity.0.as_str())))
    }

    /// Reads names and quantities as people write them.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, InvalidQuantity> {
        let mut resources = Self::default();
        for (name, text) in texts {
            let milli = parse_quantity_milli(text)?;
            let amount = if name == CPU { milli } else { milli.div_ceil(1000) };
            resources.set(name, u64::try_from(amount).unwrap_or(u64::MAX));
        }
        Ok(resources)
    }

    /// Name and amount of all that are not zero.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, amount)| (name.as_ref(), *amount))
    }

    pub fn amount(&self, name: &str) -> u64 {
        self.find(name).map_or(0, |index| self.0[index].1)
    }

    pub fn set(&mut self, name: &str, amount: u64) {
        match self.find(name) {
            Ok(index) if amount == 0 => _ = self.0.remove(index),
            Ok(index) => self.0[index].1 = amount,
            Err(_) if amount == 0 => {}
            Err(index) => {
                let common = COMMON.into_iter().find(|common| *common == name).map(Cow::Borrowed);
                self.0.insert(index, (common.unwrap_or_else(|| Cow::Owned(name.to_owned())), amount));
            }
        }
    }

    /// Where it is, or would be.
    fn find(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.as_ref().cmp(name))
    }

    pub fn has_gpu(&self) -> bool {
        self.amount(NVIDIA_GPU) > 0
    }

    /// The first resource of which `free` has too little, if any.
    pub fn lacking_in(&self, free: &Self) -> Option<&str> {
        self.0.iter().find(|(name, amount)| *amount > free.amount(name)).map(|(name, _)| name.as_ref())
    }

    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            self.set(name, self.amount(name).saturating_add(*amount));
        }
    }

    pub fn subtract(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            self.set(name, self.amount(name).saturating_sub(*amount));
        }
    }

    /// Raises each amount to `other`'s where that is higher.
    pub fn raise_to(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            self.set(name, self.amount(name).max(*amount));
        }
    }

    /// Lowers each amount to `other`'s where that is lower.
    pub fn lower_to(&mut self, other: &Self) {
        self.0.retain_mut(|(name, amount)| {
            *amount = (*amount).min(other.amount(name));
            *amount > 0
        });
    }

    /// How many times `self` fits into `free`; `u64::MAX` if it asks for nothing.
    pub fn times_in(&self, free: &Self) -> u64 {
        self.0.iter().map(|(name, amount)| free.amount(name) / amount).min().unwrap_or(u64::MAX)
    }

    /// `self` for each of so many.
    pub fn subtract_times(&mut self, other: &Self, times: u64) {
        for (name, amount) in &other.0 {
            self.set(name, self.amount(name).saturating_sub(amount.saturating_mul(times)));
        }
    }

    /// The largest share of `whole` that `self` takes of any resource, in thousandths, held to 1000.
    pub fn dominant_permille(&self, whole: &Self) -> u64 {
        let share = |(name, amount): &(Cow<str>, u64)| match whole.amount(name) {
            0 => 1000,
            all => u64::try_from(u128::from(*amount) * 1000 / u128::from(all)).unwrap_or(1000).min(1000),
        };
        self.0.iter().map(share).max().unwrap_or(0)
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |(name, amount): &(Cow<str>, u64)| match name.as_ref() {
            CPU => format!("cpu {amount}m"),
            "memory" | "ephemeral-storage" => format!("{name} {}Mi", amount.div_ceil(1 << 20)),
            _ => format!("{name} {amount}"),
        };
        f.write_str(&self.0.iter().map(text).collect::<Vec<_>>().join(", "))
    }
}

impl From<BTreeMap<String, u64>> for Resources {
    fn from(amounts: BTreeMap<String, u64>) -> Self {
        let mut resources = Self::default();
        amounts.iter().for_each(|(name, amount)| resources.set(name, *amount));
        resources
    }
}

impl From<Resources> for BTreeMap<String, u64> {
    fn from(resources: Resources) -> Self {
        resources.0.into_iter().map(|(name, amount)| (name.into_owned(), amount)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(texts: &[(&str, &str)]) -> Resources {
        Resources::from_texts(texts.iter().copied()).unwrap()
    }

    #[test]
    fn what_is_lacking_is_named() {
        let free = resources(&[("cpu", "2"), ("memory", "1Gi")]);
        assert_eq!(resources(&[("cpu", "2000m")]).lacking_in(&free), None);
        assert_eq!(resources(&[("cpu", "2001m")]).lacking_in(&free), Some("cpu"));
        assert_eq!(resources(&[(NVIDIA_GPU, "1")]).lacking_in(&free), Some(NVIDIA_GPU));
        assert_eq!(resources(&[(NVIDIA_GPU, "0")]).lacking_in(&free), None);
    }

    #[test]
    fn adding_and_subtracting_are_each_others_inverse() {
        let mut sum = resources(&[("cpu", "1"), ("memory", "1Gi")]);
        let part = resources(&[("cpu", "500m"), (NVIDIA_GPU, "2")]);
        let before = sum.clone();
        sum.add(&part);
        assert_eq!(sum.amount("cpu"), 1500);
        sum.subtract(&part);
        assert_eq!(sum, before);
    }

    #[test]
    fn times_are_told_by_the_scarcest() {
        let free = resources(&[("cpu", "4"), ("memory", "1Gi")]);
        assert_eq!(resources(&[("cpu", "1"), ("memory", "400Mi")]).times_in(&free), 2);
        assert_eq!(resources(&[(NVIDIA_GPU, "1")]).times_in(&free), 0);
        let mut rest = free.clone();
        rest.subtract_times(&resources(&[("cpu", "1")]), 3);
        assert_eq!(rest.amount("cpu"), 1000);
        let mut least = free;
        least.lower_to(&resources(&[("cpu", "8")]));
        assert_eq!(least, resources(&[("cpu", "4")]));
    }

    #[test]
    fn amounts_print_for_people() {
        let amounts = resources(&[("cpu", "1.5"), ("memory", "1Gi"), (NVIDIA_GPU, "1")]);
        assert_eq!(amounts.to_string(), "cpu 1500m, memory 1024Mi, nvidia.com/gpu 1");
    }
}
