//! The operating system going down, held up by an inhibitor lock for as long as systemd-logind lets it be.

use std::time::Duration;

use super::Notice;
use crate::intent::Trigger;
use crate::time::Instant;

/// The notice in what logind says. `boot`: the kernel's boot id, so that an agent that is started anew on the way down
/// asks for the same drain; `delay`: logind's `InhibitDelayMaxSec`.
pub fn of_shutdown(is_going_down: bool, boot: &str, delay: Duration, now: Instant) -> Vec<Notice> {
    let notice = || Notice {
        deadline: now + delay,
        trigger: Trigger::Shutdown,
        id: format!("shutdown-{boot}"),
        reason: "the operating system is going down".to_owned(),
    };
    is_going_down.then(notice).into_iter().collect()
}
