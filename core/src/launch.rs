//! Why instances of an Auto Scaling group do not come, by what its scaling activities say.
//!
//! Source of the words: EC2 Auto Scaling user guide, "Troubleshoot" (launch failures), and the EC2 API reference's error
//! codes, which activities repeat in their `StatusMessage`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Instant;

/// A scaling activity that ended as `Failed` or `Cancelled`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LaunchFailure {
    /// When the activity began, by AWS' clock.
    pub at: Instant,
    /// Its `StatusMessage`.
    pub message: String,
}

/// What is in the way: a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    /// AWS has no such instances in the zones it tried.
    Capacity,
    /// The group, its launch template or its rights are wrong: somebody must act.
    Configuration,
    /// Instances come and no ready node becomes of them.
    NeverReady,
    /// Nothing came for the provision timeout, and no activity says why.
    NothingCame,
    Other,
    /// The account's limit of instances, cores or addresses.
    Quota,
}

impl Cause {
    pub fn of(message: &str) -> Self {
        const WORDS: [(&[&str], Cause); 3] = [
            (
                &[
                    "InsufficientInstanceCapacity",
                    "InsufficientHostCapacity",
                    "InsufficientReservedInstanceCapacity",
                    "UnfulfillableCapacity",
                    "SpotMaxPriceTooLow",
                    "do not have sufficient",
                    "no Spot capacity",
                    "not have enough capacity",
                ],
                Cause::Capacity,
            ),
            (
                &[
                    "VcpuLimitExceeded",
                    "InstanceLimitExceeded",
                    "MaxSpotInstanceCountExceeded",
                    "InsufficientFreeAddressesInSubnet",
                    "VolumeLimitExceeded",
                    "limit of ",
                    "quota",
                ],
                Cause::Quota,
            ),
            (
                &[
                    "Invalid",
                    "invalid",
                    "does not exist",
                    "not supported",
                    "Unsupported",
                    "UnauthorizedOperation",
                    "not authorized",
                    "AccessDenied",
                    "Client error on launch",
                    "Client.",
                    "OptInRequired",
                ],
                Cause::Configuration,
            ),
        ];
        let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
        WORDS.iter().find(|(words, _)| says(words)).map_or(Self::Other, |(_, cause)| *cause)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Capacity => "no capacity",
            Self::Configuration => "wrong configuration",
            Self::NeverReady => "instances never became ready nodes",
            Self::NothingCame => "nothing came",
            Self::Other => "unknown cause",
            Self::Quota => "quota reached",
        })
    }
}

/// Until when a group that fails is not counted on, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failing {
    pub cause: Cause,
    /// AWS' own words; empty where it said none.
    pub message: String,
    pub until: Instant,
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "launches fail, {}; not counted on until {}", self.cause, self.until)?;
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

/// What is remembered of a group's failures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    failing: Option<Failing>,
    /// Times in a row that the group was found failing again after it had been counted on.
    rounds: u32,
    /// When the newest failure known began.
    last: Option<Instant>,
}

impl Memory {
    /// Cluster Autoscaler's backoff of a group: five minutes, doubled with each round up to thirty.
    const SHORTEST: Duration = Duration::from_secs(5 * 60);
    const LONGEST: Duration = Duration::from_secs(30 * 60);

    pub(crate) fn failing(&self) -> Option<&Failing> {
        self.failing.as_ref()
    }

    /// From a description with the group's newest failures, in any order; `came`: with an instance not seen before.
    pub(crate) fn told(&mut self, now: Instant, failures: &[LaunchFailure], came: bool) {
        let newest = failures.iter().max_by_key(|failure| failure.at);
        let news = newest.filter(|failure| self.last.is_none_or(|last| failure.at > last));
        let Some(failure) = news else {
            if came {
                *self = Self { last: self.last, ..Self::default() };
            }
            return;
        };
        self.last = Some(failure.at);
        let cause = Cause::of(&failure.message);
        let message = failure.message.clone();
        match &mut self.failing {
            // AWS goes on trying: the same round.
            Some(failing) if now < failing.until => (failing.cause, failing.message) = (cause, message),
            _ => {
                let wait = Self::LONGEST.min(Self::SHORTEST * (1 << self.rounds.min(8)));
                // What failed long ago says nothing of today. By our clock from now, as AWS' may differ.
                if now.since(failure.at) < wait {
                    self.rounds += 1;
                    self.failing = Some(Failing { cause, message, until: now + wait });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(1_000_000_000 + seconds * 1000)
    }

    fn failure(seconds: u64, message: &str) -> LaunchFailure {
        LaunchFailure { at: at(seconds), message: message.into() }
    }

    const CAPACITY: &str = "We currently do not have sufficient g4dn.xlarge capacity in the Availability Zone you \
                            requested (us-east-1a). Launching EC2 instance failed.";

    #[test]
    fn causes_are_told_apart() {
        let check = |message: &str, cause| assert_eq!(Cause::of(message), cause, "{message}");
        check(CAPACITY, Cause::Capacity);
        check("Could not launch On-Demand Instances. InsufficientInstanceCapacity - There is no", Cause::Capacity);
        check("Could not launch Spot Instances. UnfulfillableCapacity - Unable to fulfill", Cause::Capacity);
        check("Could not launch Spot Instances. MaxSpotInstanceCountExceeded - Max spot", Cause::Quota);
        check(
            "You have requested more vCPU capacity than your current vCPU limit of 32 allows for the instance bucket",
            Cause::Quota,
        );
        check("The security group 'sg-0' does not exist. Launching EC2 instance failed.", Cause::Configuration);
        check("Invalid device name upload. Launching EC2 instance failed.", Cause::Configuration);
        check("Client.InternalError: Client error on launch.", Cause::Configuration);
        check("You are not authorized to perform this operation.", Cause::Configuration);
        check("Instance failed to complete user's Lifecycle Action", Cause::Other);
    }

    #[test]
    fn a_round_of_failures_counts_once_and_each_new_round_doubles() {
        let mut memory = Memory::default();
        memory.told(at(10), &[failure(8, CAPACITY)], false);
        assert_eq!(memory.failing().unwrap().until, at(310));
        memory.told(at(60), &[failure(58, "Invalid"), failure(8, CAPACITY)], false);
        let failing = memory.failing().unwrap();
        assert_eq!((failing.cause, failing.until), (Cause::Configuration, at(310)));
        // It was counted on again, and failed again.
        memory.told(at(320), &[failure(318, CAPACITY)], false);
        assert_eq!(memory.failing().unwrap().until, at(920));
    }

    #[test]
    fn an_instance_that_comes_ends_it_and_an_old_failure_begins_nothing() {
        let mut memory = Memory::default();
        memory.told(at(10_000), &[failure(8, CAPACITY)], false);
        assert_eq!(memory.failing(), None);
        memory.told(at(10_010), &[failure(10_005, CAPACITY)], true);
        assert!(memory.failing().is_some());
        memory.told(at(10_020), &[failure(10_005, CAPACITY)], false);
        assert!(memory.failing().is_some());
        memory.told(at(10_030), &[failure(10_005, CAPACITY)], true);
        assert_eq!(memory.failing(), None);
    }
}
