//! `ballast lengths`: does training see the lengths that were sampled?

use std::process::ExitCode;

use ballast_proto::v1::{LengthDistribution, LengthsRequest, LengthsResponse};

use super::{Ask, client::Client};
use crate::table::{self, number, text};

/// Characters of the longest bar.
const BAR: f64 = 24.0;
/// Below this the difference is called one: what is asked here is asked often.
const P_VALUE_LOW: f64 = 0.01;

/// Flags of `ballast lengths`.
#[derive(Debug, clap::Args)]
pub(crate) struct LengthsArgs {
    #[command(flatten)]
    ask: Ask,
}

/// Shows both distributions, the test, and what was dropped.
pub(super) async fn lengths(args: &LengthsArgs) -> anyhow::Result<ExitCode> {
    args.ask.show(LengthsRequest {}, Client::lengths, describe).await
}

fn describe(answer: &LengthsResponse) -> String {
    let none = LengthDistribution::default();
    let sampled = answer.sampled.as_ref().unwrap_or(&none);
    let trained = answer.trained.as_ref().unwrap_or(&none);
    let of =
        |one: &LengthDistribution| format!("{} episodes, mean {:.1} tokens", one.count, one.mean);
    let facts = table::facts([
        ("sampled", of(sampled)),
        ("trained", of(trained)),
        ("difference", verdict(answer, sampled.count.min(trained.count))),
    ]);
    let histogram = histogram(&answer.upper_bounds, sampled, trained);
    format!("{facts}\n\n{histogram}\n\n{}", dropped(answer))
}

fn verdict(answer: &LengthsResponse, compared: u64) -> String {
    if compared == 0 {
        return "nothing to compare yet".to_owned();
    }
    let meaning = if answer.p_value < P_VALUE_LOW {
        "training sees other lengths than were sampled"
    } else {
        "no sign that training sees other lengths than were sampled"
    };
    format!(
        "{:.4} (Kolmogorov-Smirnov), p-value {:.3}: {meaning}",
        answer.statistic, answer.p_value
    )
}

/// One line per bin from the first to the last that holds anything, both distributions side by side.
fn histogram(bounds: &[u32], sampled: &LengthDistribution, trained: &LengthDistribution) -> String {
    let in_bin = |of: &LengthDistribution, bin: usize| of.bins.get(bin).copied().unwrap_or(0);
    let share =
        |of: &LengthDistribution, bin: usize| in_bin(of, bin) as f64 / of.count.max(1) as f64;
    let filled =
        || (0..bounds.len()).filter(|&bin| in_bin(sampled, bin) + in_bin(trained, bin) > 0);
    let (first, last) = (filled().next().unwrap_or(0), filled().next_back());
    let bins = first..last.map_or(first, |last| last + 1);
    let largest = bins.clone().map(|bin| share(sampled, bin).max(share(trained, bin)));
    let largest = largest.fold(f64::MIN_POSITIVE, f64::max);
    let bar = |share: f64| "#".repeat((BAR * share / largest).round() as usize);
    let rows = bins.map(|bin| {
        let lowest = bin.checked_sub(1).map_or(0, |before| bounds[before].saturating_add(1));
        let (sampled, trained) = (share(sampled, bin), share(trained, bin));
        [
            format!("{lowest}-{}", bounds[bin]),
            format!("{:.1}%", 100.0 * sampled),
            bar(sampled),
            format!("{:.1}%", 100.0 * trained),
            bar(trained),
        ]
    });
    let columns = [number("tokens"), number("sampled"), text(""), number("trained"), text("")];
    table::render(columns, rows, "no explored episode is finished yet")
}

fn dropped(answer: &LengthsResponse) -> String {
    let rows = answer.dropped.iter().map(|one| {
        let mean = one.known.as_ref().filter(|known| known.count > 0);
        [
            one.reason.replace('_', " "),
            one.count.to_string(),
            one.unknown.to_string(),
            table::optional(mean, |known| format!("{:.1}", known.mean)),
        ]
    });
    let columns =
        [text("dropped"), number("episodes"), number("length unknown"), number("mean tokens")];
    table::render(columns, rows, "no episode was dropped")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distribution(bins: [u64; 4]) -> LengthDistribution {
        LengthDistribution { count: bins.iter().sum(), mean: 18.0, bins: bins.to_vec() }
    }

    #[test]
    fn bins_are_drawn_from_the_first_to_the_last_that_holds_anything() {
        let (sampled, trained) = (distribution([0, 6, 0, 2]), distribution([0, 3, 0, 1]));
        assert_eq!(
            histogram(&[16, 20, 25, 31], &sampled, &trained),
            "tokens  sampled                            trained\n\
             ------  -------  ------------------------  -------\n \
             17-20    75.0%  ########################    75.0%  ########################\n \
             21-25     0.0%                               0.0%\n \
             26-31    25.0%  ########                    25.0%  ########"
        );
    }

    #[test]
    fn a_run_without_episodes_has_nothing_to_draw() {
        let text = describe(&LengthsResponse { p_value: 1.0, ..Default::default() });
        for expected in ["nothing to compare yet", "no explored episode", "no episode was dropped"]
        {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
    }

    #[test]
    fn the_verdict_follows_the_test() {
        let verdict = |p_value| {
            verdict(&LengthsResponse { statistic: 0.25, p_value, ..Default::default() }, 7)
        };
        assert!(verdict(0.5).contains("0.2500 (Kolmogorov-Smirnov), p-value 0.500: no sign"));
        assert!(verdict(0.001).contains("p-value 0.001: training sees other lengths"));
    }
}
