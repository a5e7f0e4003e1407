//! What is to go wrong, as rules. The first rule that fits a call, a launch or a boot is used; with `times` it is used up.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// No actions of the API: an attempt to launch one instance, of one type in one zone; and an instance that boots.
const LAUNCH: &str = "Launch";
const BOOT: &str = "Boot";

/// One rule, as it stands in the JSON list of `/_lab/faults`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// An action of the API, `Launch` or `Boot`; absent: every call, but neither of these two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Only calls that name this group, or its launches and boots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Only launches and boots in this zone, such as `us-west-2a`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Only launches and boots of this instance type.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// Only launches and boots of this kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub market: Option<Market>,
    /// Wait so long before anything else; for a boot, beyond the lab's boot delay. A boot without it never ends: the
    /// instance is InService, and no Node comes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// The error that is answered: `Throttling`, `InternalFailure`, `InsufficientInstanceCapacity`, or any other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Its HTTP status; absent: what AWS documents for the code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Its text; absent: AWS's wording where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Close the connection instead of answering.
    #[serde(skip_serializing_if = "is_false")]
    pub drop: bool,
    /// Whatever is answered, or not: the call takes effect.
    #[serde(skip_serializing_if = "is_false")]
    pub effect: bool,
    /// Answer what the same call was answered last, as a read that is only eventually consistent.
    #[serde(skip_serializing_if = "is_false")]
    pub stale: bool,
    /// How many that fit it lets pass first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip: Option<u32>,
    /// How many that fit it lets pass in a second, as many at once: with `Throttling`, the token bucket of AWS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<u32>,
    #[serde(skip)]
    bucket: Option<Bucket>,
    /// How often; absent: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Market {
    OnDemand,
    Spot,
}

impl fmt::Display for Market {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OnDemand => "OnDemand",
            Self::Spot => "Spot",
        })
    }
}

/// One attempt to launch, or one instance that boots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) group: &'a str,
    pub(crate) zone: &'a str,
    pub(crate) instance_type: &'a str,
    pub(crate) market: Market,
}

/// What a rule still lets pass at a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    thousandths: u64,
    at: Timestamp,
}

impl Bucket {
    /// Whether there was one.
    fn take(&mut self, now: Timestamp, per_second: u32) -> bool {
        let rate = u64::from(per_second);
        let passed = u64::try_from(now.duration_since(self.at).as_millis()).unwrap_or(0);
        self.thousandths = (self.thousandths + passed * rate).min(1000 * rate);
        self.at = now;
        let there = self.thousandths >= 1000;
        if there {
            self.thousandths -= 1000;
        }
        there
    }
}

#[derive(Debug, Default)]
pub struct Faults {
    rules: Vec<Rule>,
}

impl Faults {
    /// Replaces all rules. `Err` says what is wrong with one.
    pub fn set(&mut self, rules: Vec<Rule>) -> Result<(), String> {
        for rule in &rules {
            rule.check()?;
        }
        self.rules = rules;
        Ok(())
    }

    /// What is left of them.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    pub(crate) fn call(&mut self, now: Timestamp, action: &str, group: Option<&str>) -> Option<Rule> {
        self.take(now, |rule| {
            rule.is_call()
                && rule.action.as_deref().is_none_or(|wanted| wanted == action)
                && (rule.group.is_none() || rule.group.as_deref() == group)
        })
    }

    pub(crate) fn launch(&mut self, now: Timestamp, attempt: Attempt<'_>) -> Option<Rule> {
        self.take(now, |rule| rule.action.as_deref() == Some(LAUNCH) && rule.fits(attempt))
    }

    pub(crate) fn boot(&mut self, now: Timestamp, attempt: Attempt<'_>) -> Option<Rule> {
        self.take(now, |rule| rule.action.as_deref() == Some(BOOT) && rule.fits(attempt))
    }

    fn take(&mut self, now: Timestamp, fits: impl Fn(&Rule) -> bool) -> Option<Rule> {
        let index = self.rules.iter().position(|rule| rule.times != Some(0) && fits(rule))?;
        let rule = &mut self.rules[index];
        if let Some(per_second) = rule.per_second {
            let full = Bucket { thousandths: 1000 * u64::from(per_second), at: now };
            if rule.bucket.get_or_insert(full).take(now, per_second) {
                return None;
            }
        }
        if let Some(skip) = rule.skip.as_mut().filter(|skip| **skip > 0) {
            *skip -= 1;
            return None;
        }
        if let Some(times) = &mut rule.times {
            *times -= 1;
            if *times == 0 {
                return Some(self.rules.remove(index));
            }
        }
        Some(rule.clone())
    }
}

impl Rule {
    fn is_call(&self) -> bool {
        !matches!(self.action.as_deref(), Some(LAUNCH | BOOT))
    }

    fn fits(&self, attempt: Attempt<'_>) -> bool {
        let fits = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        fits(&self.group, attempt.group)
            && fits(&self.zone, attempt.zone)
            && fits(&self.instance_type, attempt.instance_type)
            && self.market.is_none_or(|market| market == attempt.market)
    }

    fn check(&self) -> Result<(), String> {
        let action = self.action.as_deref().unwrap_or_default();
        if self.is_call() {
            if self.zone.is_some() || self.instance_type.is_some() || self.market.is_some() {
                return Err(format!("zone, type and market are for the actions {LAUNCH} and {BOOT}"));
            }
            if [self.code.is_some(), self.drop, self.stale].into_iter().filter(|set| *set).count() > 1 {
                return Err("an answer is one of code, drop and stale".to_owned());
            }
            return Ok(());
        }
        if self.drop || self.effect || self.stale || self.status.is_some() {
            return Err(format!("{action} is no call: drop, effect, stale and status mean nothing to it"));
        }
        if action == LAUNCH && (self.code.is_none() || self.delay_ms.is_some()) {
            return Err(format!("{LAUNCH} needs a code, such as InsufficientInstanceCapacity, and takes no delay_ms"));
        }
        if action == BOOT && (self.code.is_some() || self.message.is_some()) {
            return Err(format!("{BOOT} takes no code and no message: nobody says why a node does not come"));
        }
        Ok(())
    }

    /// What the call is refused with.
    pub(crate) fn error(&self) -> Option<ApiError> {
        let code = self.code.as_deref()?;
        let message = self.message.clone().unwrap_or_else(|| match code {
            "AccessDenied" => "User: lab is not authorized to perform this action".to_owned(),
            "ExpiredToken" => "The security token included in the request is expired".to_owned(),
            "InternalFailure" => {
                "The request processing has failed because of an unknown error, exception or failure.".to_owned()
            }
            "ResourceContention" => "You already have a pending update to an Amazon EC2 Auto Scaling resource (for \
                                     example, an Auto Scaling group, instance, or load balancer)."
                .to_owned(),
            "ServiceUnavailable" => "The request has failed due to a temporary failure of the server.".to_owned(),
            "Throttling" => "Rate exceeded".to_owned(),
            _ => format!("{code}, said the lab"),
        });
        let error = ApiError::new(code, message);
        Some(ApiError { status: self.status.unwrap_or(error.status), ..error })
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(flag: &bool) -> bool {
    !flag
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use std::time::Duration;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn faults(rules: Value) -> Faults {
        let mut faults = Faults::default();
        faults.set(serde_json::from_value(rules).unwrap()).unwrap();
        faults
    }

    fn attempt<'a>(zone: &'a str, instance_type: &'a str) -> Attempt<'a> {
        Attempt { group: "gpu", zone, instance_type, market: Market::OnDemand }
    }

    #[test]
    fn a_rule_is_used_as_often_as_it_says() {
        let mut faults = faults(json!([{"action": "SetDesiredCapacity", "code": "Throttling", "times": 2}]));
        assert_eq!(faults.call(NOW, "DescribeAutoScalingGroups", None), None);
        let error = faults.call(NOW, "SetDesiredCapacity", Some("cpu")).unwrap().error().unwrap();
        assert_eq!((error.status, error.message.as_str()), (400, "Rate exceeded"));
        assert_eq!(faults.rules()[0].times, Some(1));
        assert!(faults.call(NOW, "SetDesiredCapacity", Some("cpu")).is_some());
        assert!(faults.rules().is_empty());
        assert_eq!(faults.call(NOW, "SetDesiredCapacity", Some("cpu")), None);
    }

    #[test]
    fn a_rule_lets_pass_as_many_as_it_says() {
        let mut faults = faults(json!([{"action": "Launch", "code": "VcpuLimitExceeded", "skip": 2, "times": 1}]));
        let mut fails = || faults.launch(NOW, attempt("us-west-2a", "m5.xlarge")).is_some();
        assert_eq!([fails(), fails(), fails(), fails()], [false, false, true, false]);
    }

    #[test]
    fn a_rate_lets_pass_what_it_says_and_no_more() {
        let mut faults = faults(json!([{"code": "Throttling", "per_second": 2}]));
        let mut passes = |ms| faults.call(NOW + Duration::from_millis(ms), "Describe", None).is_none();
        assert_eq!([passes(0), passes(0), passes(0), passes(499)], [true, true, false, false]);
        assert_eq!([passes(500), passes(600), passes(1000), passes(1001)], [true, false, true, false]);
        assert_eq!([passes(60_000), passes(60_000), passes(60_000)], [true, true, false], "unused, it does not grow");
    }

    #[test]
    fn a_rule_without_an_action_means_calls_and_nothing_else() {
        let mut faults = faults(json!([{"delay_ms": 5}]));
        assert!(faults.call(NOW, "Anything", None).is_some());
        assert!(faults.launch(NOW, attempt("us-west-2a", "m5.xlarge")).is_none());
        assert!(faults.boot(NOW, attempt("us-west-2a", "m5.xlarge")).is_none());
    }

    #[test]
    fn capacity_is_short_by_zone_type_and_market() {
        let short = json!({"action": "Launch", "code": "InsufficientInstanceCapacity", "zone": "us-west-2a",
                           "type": "m5.xlarge", "market": "OnDemand"});
        let mut faults = faults(json!([short]));
        assert!(faults.launch(NOW, attempt("us-west-2b", "m5.xlarge")).is_none());
        assert!(faults.launch(NOW, attempt("us-west-2a", "m5.large")).is_none());
        assert!(faults.launch(NOW, Attempt { market: Market::Spot, ..attempt("us-west-2a", "m5.xlarge") }).is_none());
        assert!(faults.launch(NOW, attempt("us-west-2a", "m5.xlarge")).is_some());
        assert!(faults.call(NOW, "Launch", None).is_none());
    }

    #[test]
    fn rules_that_mean_nothing_are_refused() {
        let set = |rule: Value| Faults::default().set(vec![serde_json::from_value(rule).unwrap()]);
        assert!(set(json!({"action": "Launch"})).is_err());
        assert!(set(json!({"action": "Launch", "code": "X", "drop": true})).is_err());
        assert!(set(json!({"action": "SetDesiredCapacity", "zone": "us-west-2a"})).is_err());
        assert!(set(json!({"code": "X", "drop": true})).is_err());
        assert!(set(json!({"stale": true, "drop": true})).is_err());
        assert!(set(json!({"action": "Boot", "code": "X"})).is_err());
        assert!(set(json!({"action": "Boot", "group": "gpu", "delay_ms": 1000})).is_ok());
        assert!(serde_json::from_value::<Rule>(json!({"acton": "Launch"})).is_err());
    }

    #[test]
    fn statuses_are_aws_own_unless_given() {
        let status = |rule: Value| serde_json::from_value::<Rule>(rule).unwrap().error().unwrap().status;
        assert_eq!(status(json!({"code": "InternalFailure"})), 500);
        assert_eq!(status(json!({"code": "ServiceUnavailable"})), 503);
        assert_eq!(status(json!({"code": "AccessDenied"})), 403);
        assert_eq!(status(json!({"code": "Throttling", "status": 429})), 429);
    }
}
