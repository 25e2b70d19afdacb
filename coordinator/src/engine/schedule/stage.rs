//! Where in a run the schedule is: the order of cold start, evaluations and main part, and nothing
//! else.

use serde::{Deserialize, Serialize};

/// Part of the schedule the cursor is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    ColdStart,
    ColdStartCheck,
    AfterColdStart,
    Main,
    Final,
    Finish,
    Finished,
}

/// What moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StageEvent {
    /// The stage has no step left.
    StepsDone,
    /// It is time to look whether the cold start has done its work.
    CheckDue,
    /// The evaluation at hand is done; if it was a check, it was passed.
    Passed,
    /// The check at hand was not passed.
    Failed,
    /// Somebody ends the run.
    Stopped,
    /// The last batch is planned.
    FinishPlanned,
}

impl Stage {
    /// The stage after an event. What cannot happen in a stage changes nothing.
    pub(super) fn after(self, event: StageEvent) -> Self {
        use StageEvent::{CheckDue, Failed, FinishPlanned, Passed, StepsDone, Stopped};
        match (self, event) {
            (Self::Finished, _) => Self::Finished,
            (_, Stopped) => Self::Finish,
            (Self::ColdStart, StepsDone) | (Self::ColdStartCheck, Passed) => Self::AfterColdStart,
            (Self::ColdStart, CheckDue) => Self::ColdStartCheck,
            (Self::ColdStartCheck, Failed) => Self::ColdStart,
            (Self::AfterColdStart, Passed) => Self::Main,
            (Self::Main, StepsDone) => Self::Final,
            (Self::Final, Passed) => Self::Finish,
            (Self::Finish, FinishPlanned) => Self::Finished,
            (unmoved, StepsDone | CheckDue | Passed | Failed | FinishPlanned) => unmoved,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_answers_every_event() {
        use Stage::{AfterColdStart, ColdStart, ColdStartCheck, Final, Finish, Finished, Main};
        use StageEvent::{CheckDue, Failed, FinishPlanned, Passed, StepsDone, Stopped};
        let events = [StepsDone, CheckDue, Passed, Failed, Stopped, FinishPlanned];
        let table = [
            (ColdStart, [AfterColdStart, ColdStartCheck, ColdStart, ColdStart, Finish, ColdStart]),
            (
                ColdStartCheck,
                [ColdStartCheck, ColdStartCheck, AfterColdStart, ColdStart, Finish, ColdStartCheck],
            ),
            (
                AfterColdStart,
                [AfterColdStart, AfterColdStart, Main, AfterColdStart, Finish, AfterColdStart],
            ),
            (Main, [Final, Main, Main, Main, Finish, Main]),
            (Final, [Final, Final, Finish, Final, Finish, Final]),
            (Finish, [Finish, Finish, Finish, Finish, Finish, Finished]),
            (Finished, [Finished; 6]),
        ];
        for (stage, row) in table {
            for (event, expected) in events.into_iter().zip(row) {
                assert_eq!(stage.after(event), expected, "{stage:?} after {event:?}");
            }
        }
    }
}
