use proptest::prelude::*;

use super::*;

/// Metrics of an RL step with this strain.
fn strained(strain: f64) -> BTreeMap<String, f64> {
    let limit = Adaptive::default().polluted_rate;
    [(name::INVALID_CALL_RATE.to_owned(), 0.0), (name::POLLUTED_RATE.to_owned(), strain * limit)]
        .into()
}

fn controller() -> Controller {
    Controller::new(&Schedule::default())
}

/// A policy whose strain is a disturbance less what SFT repairs of it, `delay` steps later.
/// Returns the share after every step.
fn close_the_loop(disturbance: f64, repair: f64, delay: usize, steps: usize) -> Vec<f64> {
    let mut controller = controller();
    let mut shares = vec![controller.share(); delay];
    for _ in 0..steps {
        let acting = shares[shares.len() - delay];
        controller.observe(&strained((disturbance - repair * acting).max(0.0)));
        shares.push(controller.share());
    }
    shares
}

#[test]
fn it_begins_with_the_share_of_a_cycle_within_the_bounds() {
    let mut schedule = Schedule::default();
    for (rl, sft, share) in [(4, 1, 0.2), (1, 9, 0.5), (99, 1, 0.1), (0, 0, 0.1)] {
        (schedule.rl_steps, schedule.sft_steps) = (rl, sft);
        assert!((Controller::new(&schedule).share() - share).abs() < 1e-12, "{rl}:{sft}");
    }
}

#[test]
fn it_rises_at_once_and_falls_slowly_after_a_while() {
    let mut controller = controller();
    let start = controller.share();
    let why = controller.observe(&strained(2.0)).expect("moved");
    assert!(why.contains(name::POLLUTED_RATE), "{why}");
    let risen = controller.share();
    assert!((risen - start - 0.04).abs() < 1e-12);
    // Smoothed strain: 1.0, 0.5, 0.25 ...; clear of the band from the second one on.
    let held = (0..20).take_while(|_| controller.observe(&strained(0.0)).is_none()).count();
    assert_eq!(held, 8, "one in the band, seven clear; the eighth clear one moves");
    assert!(risen - controller.share() < 0.0101, "at most a quarter of the rise");
}

#[test]
fn a_step_without_a_measured_rate_changes_nothing() {
    let mut controller = controller();
    assert_eq!(controller.observe(&BTreeMap::new()), None);
    let nonsense = [(name::POLLUTED_RATE.to_owned(), f64::NAN)].into();
    assert_eq!(controller.observe(&nonsense), None);
    assert_eq!((controller.strain(), controller.share()), (None, 0.2));
}

#[test]
fn it_settles_after_a_step_disturbance_in_every_plant_the_docs_promise() {
    for delay in 1..=4 {
        for repair in [0.5, 1.0, 2.0, 4.0] {
            for disturbance in [0.0, 0.9, 1.2, 1.6, 2.0, 3.0] {
                let shares = close_the_loop(disturbance, repair, delay, 600);
                let settled = &shares[500..];
                let moved = settled.iter().any(|share| share != &settled[0]);
                assert!(!moved, "delay {delay}, repair {repair}, disturbance {disturbance}");
                let (share, Adaptive { share_min, share_max, dead_band, .. }) =
                    (settled[0], Adaptive::default());
                let error = (disturbance - repair * share).clamp(0.0, STRAIN_MAX) - 1.0;
                let rests = error.abs() <= dead_band + 1e-6
                    || (error > 0.0 && share == share_max)
                    || (error < 0.0 && share == share_min);
                assert!(rests, "delay {delay}, repair {repair}, {disturbance}: {share} at {error}");
            }
        }
    }
}

#[test]
fn steps_follow_the_share_to_within_one() {
    let mut controller = controller();
    let (mut sft, mut owed) = (0.0, 0.0);
    for round in 0..1000 {
        controller.observe(&strained(f64::from(round % 5)));
        owed += controller.share();
        sft += f64::from(u8::from(controller.next_is_sft()));
        assert!((owed - sft).abs() <= 1.0 + ROUNDING, "{owed} owed, {sft} given");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_share_stays_within_its_bounds(
        strains in prop::collection::vec(-1e6..1e9_f64, 0..200),
        low in 0.0..0.9_f64, high in 0.0..0.9_f64, gain in 0.0..1.0_f64,
    ) {
        let mut schedule = Schedule::default();
        let (share_min, share_max) = (low.min(high), low.max(high));
        schedule.adaptive =
            Adaptive { share_min, share_max, gain, hold_steps: 1, ..Adaptive::default() };
        let mut controller = Controller::new(&schedule);
        for strain in strains {
            controller.observe(&strained(strain));
            prop_assert!((share_min..=share_max).contains(&controller.share()));
        }
    }

    /// However long and bad a disturbance was, the share begins to fall equally soon after it.
    #[test]
    fn it_does_not_wind_up(
        strains in prop::collection::vec(2.0..1e9_f64, 1..500),
    ) {
        let mut controller = controller();
        for strain in strains {
            controller.observe(&strained(strain));
        }
        let until = (0..100).position(|_| controller.observe(&strained(0.0)).is_some());
        prop_assert_eq!(until, Some(8));
    }

    #[test]
    fn it_does_not_chatter_within_the_dead_band(
        first in 0.76..1.24_f64,
        strains in prop::collection::vec(0.76..1.24_f64, 0..300),
    ) {
        let mut controller = controller();
        let start = controller.share();
        for strain in std::iter::once(first).chain(strains) {
            prop_assert_eq!(controller.observe(&strained(strain)), None);
            prop_assert_eq!(controller.share(), start);
        }
    }
}
