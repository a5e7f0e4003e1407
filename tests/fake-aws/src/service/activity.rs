//! Scaling activities: what a group did, and what came of it, in AWS's words.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::faults::{Attempt, Market, Rule};

/// Activities are only ever added, so that a number names one for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ActivityIndex(pub(super) usize);

pub(super) struct Activity {
    pub(super) id: String,
    pub(super) group: String,
    pub(super) arn: String,
    pub(super) description: String,
    pub(super) cause: String,
    pub(super) zone: String,
    pub(super) subnet: String,
    pub(super) started: Timestamp,
    pub(super) state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The instance has its id and is not in service.
    PreInService,
    InProgress,
    /// A hook holds the instance.
    MidLifecycleAction,
    Successful {
        ended: Timestamp,
    },
    Failed {
        ended: Timestamp,
        message: String,
    },
    Cancelled {
        ended: Timestamp,
        message: String,
    },
}

impl State {
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::PreInService => "PreInService",
            Self::InProgress => "InProgress",
            Self::MidLifecycleAction => "MidLifecycleAction",
            Self::Successful { .. } => "Successful",
            Self::Failed { .. } => "Failed",
            Self::Cancelled { .. } => "Cancelled",
        }
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.ended().is_none()
    }

    fn ended(&self) -> Option<Timestamp> {
        match self {
            Self::PreInService | Self::InProgress | Self::MidLifecycleAction => None,
            Self::Successful { ended } | Self::Failed { ended, .. } | Self::Cancelled { ended, .. } => Some(*ended),
        }
    }

    fn message(&self) -> Option<&str> {
        match self {
            Self::Failed { message, .. } | Self::Cancelled { message, .. } => Some(message),
            _ => None,
        }
    }

    fn progress(&self) -> u32 {
        match self {
            Self::InProgress => 0,
            Self::PreInService => 30,
            Self::MidLifecycleAction => 60,
            Self::Successful { .. } | Self::Failed { .. } | Self::Cancelled { .. } => 100,
        }
    }
}

impl Activity {
    /// As the API describes it.
    pub(super) fn describe(&self) -> Value {
        let message = self.state.message();
        let reason = message.map(|message| format!(".  Status Reason: {message}")).unwrap_or_default();
        json!({
            "ActivityId": self.id,
            "AutoScalingGroupName": self.group,
            "AutoScalingGroupARN": self.arn,
            "Description": format!("{}{reason}", self.description),
            "Cause": self.cause,
            "StartTime": instant(self.started),
            "EndTime": self.state.ended().map(second),
            "StatusCode": self.state.code(),
            "StatusMessage": message,
            "Progress": self.state.progress(),
            "Details": json!({"Subnet ID": self.subnet, "Availability Zone": self.zone}).to_string(),
        })
    }
}

/// With milliseconds.
pub(super) fn instant(at: Timestamp) -> String {
    format!("{at:.3}")
}

/// To the second, as in causes and ends.
pub(super) fn second(at: Timestamp) -> String {
    format!("{at:.0}")
}

/// What EC2 says when it launches nothing, in its own words where we know them. `choices` are the group's other zones.
pub(super) fn refusal(rule: &Rule, attempt: Attempt<'_>, choices: &[&str], template: &str) -> String {
    let Attempt { zone, instance_type, market, .. } = attempt;
    if let Some(message) = &rule.message {
        return message.clone();
    }
    match (rule.code.as_deref().unwrap_or_default(), market) {
        ("InsufficientInstanceCapacity" | "UnfulfillableCapacity", Market::Spot) => {
            "There is no Spot capacity available that matches your request.".to_owned()
        }
        ("InsufficientInstanceCapacity" | "UnfulfillableCapacity", Market::OnDemand) => {
            let choices = if choices.is_empty() { String::new() } else { format!(" or choosing {}", choices.join(", ")) };
            format!(
                "We currently do not have sufficient {instance_type} capacity in the Availability Zone you requested \
                 ({zone}). Our system will be working on provisioning additional capacity. You can currently get \
                 {instance_type} capacity by not specifying an Availability Zone in your request{choices}."
            )
        }
        ("VcpuLimitExceeded", _) => "You have requested more vCPU capacity than your current vCPU limit of 32 allows for \
                                     the instance bucket that the specified instance type belongs to. Please visit \
                                     http://aws.amazon.com/contact-us/ec2-request to request an adjustment to this limit."
            .to_owned(),
        ("MaxSpotInstanceCountExceeded", _) => "Max spot instance count exceeded.".to_owned(),
        ("InvalidAMIID.NotFound", _) => "The image id '[ami-0fa4e000000000000]' does not exist.".to_owned(),
        ("InvalidLaunchTemplateId.NotFound", _) => {
            format!("The specified launch template, with template ID {template}, does not exist.")
        }
        ("Unsupported", _) => format!(
            "Your requested instance type ({instance_type}) is not supported in your requested Availability Zone ({zone})."
        ),
        (code, _) => format!("{code}, said the lab."),
    }
}
