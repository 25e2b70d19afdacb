//! Whether a replay came out as the run did: checkpoint by checkpoint, tensor by tensor.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, Serializer};

use super::{
    course::Course,
    tensors::{self, Difference},
};

/// Marks a complete checkpoint, in the same directory as its tensors.
const STATE_FILE: &str = "trainer_state.json";
/// The optimizer's moments; the other safetensors files are the network's.
const STATE_TENSORS: &str = "trainer_state.safetensors";
const SAME: &str = "identical";

/// What a replay came to.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    /// Everything that could be compared is the same, and something could.
    identical: bool,
    /// First step whose published weights were not the run's.
    first_other_step: Option<u64>,
    /// Steps whose published weights could be compared.
    steps_compared: u64,
    /// Those that both have.
    checkpoints: Vec<Row>,
}

/// One checkpoint beside the run's.
#[derive(Debug, Serialize)]
struct Row {
    step: u64,
    #[serde(serialize_with = "in_words")]
    weights: Option<String>,
    #[serde(serialize_with = "in_words")]
    trainer_state: Option<String>,
}

fn in_words<S: Serializer>(difference: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(difference.as_deref().unwrap_or(SAME))
}

/// Steps of the complete checkpoints in a directory.
pub(super) fn steps(checkpoints: &Path) -> io::Result<BTreeSet<u64>> {
    let entries = match fs::read_dir(checkpoints) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let step = |entry: fs::DirEntry| {
        let step = entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?;
        entry.path().join(STATE_FILE).is_file().then_some(step)
    };
    let steps = entries.map(|entry| entry.map(step));
    Ok(steps.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

impl Verdict {
    /// Compares the checkpoints after `from` that are in both directories.
    pub(super) fn new(run: &Path, replay: &Path, from: u64, course: &Course) -> io::Result<Self> {
        let both = &steps(run)? & &steps(replay)?;
        let row = |step: u64| row(step, &place(run, step), &place(replay, step));
        let checkpoints = both.into_iter().filter(|step| *step > from).map(row);
        let checkpoints = checkpoints.collect::<io::Result<Vec<_>>>()?;
        let (first_other_step, steps_compared) = (course.first_other(), course.compared());
        let same = |row: &Row| row.weights.is_none() && row.trainer_state.is_none();
        let identical = checkpoints.iter().all(same)
            && first_other_step.is_none()
            && (steps_compared > 0 || !checkpoints.is_empty());
        Ok(Self { identical, first_other_step, steps_compared, checkpoints })
    }

    /// Whether the run came out again.
    pub(super) fn is_identical(&self) -> bool {
        self.identical
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let mut lines = Vec::new();
        let mut line = |step: &str, weights: &str, state: &str| {
            lines.push(format!("{step:>6}  {weights:<40}  {state}"));
        };
        if !self.checkpoints.is_empty() {
            line("step", "weights", "trainer state");
        }
        for Row { step, weights, trainer_state } in &self.checkpoints {
            let [weights, state] =
                [weights, trainer_state].map(|one| one.as_deref().unwrap_or(SAME));
            line(&step.to_string(), weights, state);
        }
        let compared = self.steps_compared;
        lines.push(match self.first_other_step {
            Some(step) => format!("the weights part from the run's at step {step}"),
            None if compared == 0 => "no published weights could be compared".to_owned(),
            None => format!("each of {compared} steps published the weights of the run"),
        });
        lines.join("\n")
    }
}

fn place(checkpoints: &Path, step: u64) -> PathBuf {
    checkpoints.join(format!("step-{step}"))
}

fn row(step: u64, run: &Path, replay: &Path) -> io::Result<Row> {
    let mut row = Row { step, weights: None, trainer_state: None };
    for file in &tensor_files(run)? | &tensor_files(replay)? {
        let side = if file == STATE_TENSORS { &mut row.trainer_state } else { &mut row.weights };
        if side.is_none() {
            *side = difference(&file, run, replay)?;
        }
    }
    Ok(row)
}

fn tensor_files(checkpoint: &Path) -> io::Result<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(checkpoint)? {
        let name = entry?.file_name();
        let name = name.to_str().filter(|name| name.ends_with(".safetensors"));
        files.extend(name.map(str::to_owned));
    }
    Ok(files)
}

/// How a file of two checkpoints differs, in words.
fn difference(file: &str, run: &Path, replay: &Path) -> io::Result<Option<String>> {
    for (checkpoint, whose) in [(run, "run"), (replay, "replay")] {
        if !checkpoint.join(file).is_file() {
            return Ok(Some(format!("{file} is missing in the {whose}'s")));
        }
    }
    let found = tensors::compare(&run.join(file), &replay.join(file))?;
    Ok(found.map(|difference| match difference {
        Difference::Layout => format!("{file} has other tensors"),
        Difference::Values { tensor, largest: Some(largest) } => {
            format!("from {tensor} on, by up to {largest:.1e}")
        }
        Difference::Values { tensor, largest: None } => format!("from {tensor} on"),
    }))
}
