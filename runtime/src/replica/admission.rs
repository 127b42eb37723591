//! Letting calls begin: a model for them, a slot, and memory for their answers.

use std::time::{Duration, Instant};

use outrigger_auth::Grant;
use outrigger_protocol::error::{CallError, ErrorCode};

use super::{Replica, Serving};
use crate::busy::{Outcome, Ticket};
use crate::models::{Lease, NamedModel};
use crate::scheduler::{self, Slot, Terms};
use crate::telemetry::{self, Phase};

impl Replica {
    /// A version that is to run. A call that waits for one to be loaded is counted as one that waits.
    ///
    /// # Errors
    /// As [`Models::lease`].
    pub(crate) async fn lease(
        &self,
        serving: &Serving,
        model: &NamedModel,
        which: Option<&str>,
        until: Instant,
    ) -> Result<(Lease, Option<Ticket>), CallError> {
        if let Some(lease) = model.version(which)?.lease() {
            return Ok((lease, None));
        }
        let since = Instant::now();
        let counted = self.busy.arrive().ok_or_else(|| {
            CallError::new(ErrorCode::Overloaded, "more calls wait than can be counted")
                .with_retry_after(Duration::from_secs(1))
        })?;
        let leased = serving.models.lease_version(model, which, until).await;
        telemetry::spent(Phase::Queue, since);
        match leased {
            Ok(lease) => Ok((lease, Some(counted))),
            Err(error) => {
                counted.finish(Outcome::Refused);
                Err(error)
            }
        }
    }

    /// Waits for a slot, which keeps the caller's place with it. A call that has waited for a model is counted already.
    ///
    /// # Errors
    /// As [`Scheduler::admit`], and `overloaded` while answers that clients do not take hold all the memory that there is for them.
    pub(crate) async fn admit(
        &self,
        grant: &Grant,
        terms: Terms,
        counted: Option<Ticket>,
    ) -> Result<Slot, CallError> {
        let mut slot = self.scheduler.admit_counted(terms, counted).await?;
        slot.keep(grant.permit());
        // After the wait, so that a queue of calls does not come on top.
        match self.may_answer() {
            Ok(()) => Ok(slot),
            Err(error) => {
                slot.finish(Outcome::Refused);
                Err(error)
            }
        }
    }

    /// Whether there is memory for one more answer.
    ///
    /// # Errors
    /// `overloaded`.
    pub(crate) fn may_answer(&self) -> Result<(), CallError> {
        if self.busy.unsent() < self.config.limits.answers as u64 {
            return Ok(());
        }
        let text =
            "answers that their clients do not take hold all the memory there is for them (limits.answers)";
        Err(CallError::new(ErrorCode::Overloaded, text).with_retry_after(Duration::from_secs(1)))
    }

    /// Whether a call may begin that may need no slot; one that is counted has begun.
    ///
    /// # Errors
    /// `draining`.
    pub(crate) fn may_begin(&self, is_counted: bool) -> Result<(), CallError> {
        if is_counted || !self.busy.is_draining() {
            return Ok(());
        }
        self.busy.refuse();
        Err(scheduler::draining())
    }

    /// [`Replica::admit`] of a call that needs no slot: its answer has to have room, too.
    ///
    /// # Errors
    /// `overloaded`.
    pub(crate) fn admit_without_slot(&self, counted: Option<Ticket>) -> Result<(), CallError> {
        let may = self.may_answer();
        match &may {
            Ok(()) => counted.into_iter().for_each(|counted| counted.finish(Outcome::Answered)),
            Err(_) => self.busy.refuse_call(counted),
        }
        may
    }
}
