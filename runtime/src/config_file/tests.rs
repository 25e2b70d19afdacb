//! The loader seen from outside: files and flags in, a configuration or all faults out.

use std::{fs, path::PathBuf};

use super::*;
use crate::config::ScheduleKind;

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).expect("a written file");
        path
    }
}

fn load_overrides(overrides: &[&str]) -> Result<Config, ConfigError> {
    load(&[], &overrides.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
}

/// The single fault of one override, as text.
fn fault(text: &str) -> String {
    let error = load_overrides(&[text]).expect_err(text);
    assert_eq!(error.faults.len(), 1, "{error}");
    error.faults[0].to_string()
}

#[test]
fn the_defaults_are_sound_and_survive_their_own_toml() {
    assert_eq!(load(&[], &[]), Ok(Config::default()));
    let files = Files::new();
    let path = files.write("all.toml", &to_toml(&Config::default()));
    assert_eq!(load(&[path], &[]), Ok(Config::default()));
}

#[test]
fn later_layers_win_and_overrides_win_over_all() {
    let files = Files::new();
    let base = files.write("base.toml", "[rl]\ngroup_size = 4\nstaleness_max = 1\n");
    let over = files.write("over.toml", "[rl]\ngroup_size = 6\n[run]\nname = \"over\"\n");
    let config = load(&[base, over], &["run.name=flag".into()]).expect("sound");
    assert_eq!((config.rl.group_size, config.rl.staleness_max), (6, 1));
    assert_eq!(config.run.name, "flag");
}

#[test]
fn overrides_take_toml_values_and_bare_words() {
    let config = load_overrides(&[
        "schedule.kind=sft_only",
        "tasks.calls=[2, 2, 5]",
        "rl.advantage_std=false",
        "rl.learning_rate=1e-4",
        "schedule.cold_start_success=1",
        "model.checkpoint=runs/a=b/checkpoints/step-10",
        "run.name=2024-01-01",
        "coordinator.listen = \"[::1]:0\"",
    ])
    .expect("sound");
    assert_eq!(config.schedule.kind, ScheduleKind::SftOnly);
    assert_eq!(config.tasks.calls, [2, 2, 5]);
    assert!(!config.rl.advantage_std);
    assert_eq!((config.rl.learning_rate, config.schedule.cold_start_success), (1e-4, 1.0));
    assert_eq!(config.model.checkpoint, PathBuf::from("runs/a=b/checkpoints/step-10"));
    assert_eq!(config.run.name, "2024-01-01");
    assert_eq!(config.coordinator.listen, "[::1]:0");
}

#[test]
fn an_unknown_key_gets_a_suggestion() {
    for (text, expected) in [
        ("rl.groupsize=4", "rl.groupsize: unknown key; did you mean `group_size`?"),
        ("rll.group_size=4", "rll: unknown key; did you mean `rl`?"),
        ("rl.batch=4", "rl.batch: unknown key; did you mean `sft.batch`?"),
        ("group_size=4", "group_size: unknown key; did you mean `rl.group_size`?"),
        ("model.flavour=x", "model.flavour: unknown key; known here: checkpoint, tool_call_format"),
    ] {
        let fault = fault(text);
        assert!(fault.starts_with(expected), "{fault}");
        assert!(fault.ends_with(&format!("(from --set {text})")), "{fault}");
    }
}

#[test]
fn variables_of_the_template_have_any_name_and_value() {
    let files = Files::new();
    let text = "[model.template_variables]\ndate_string = \"1 May\"\nday = 2024-07-26\n";
    let path = files.write("a.toml", text);
    let overrides = [
        "model.template_variables.enable_thinking=false",
        "model.template_variables.builtin_tools=[\"code\"]",
        "model.tool_call_format=qwen_xml",
    ];
    let config = load(&[path], &overrides.map(str::to_owned)).expect("sound");
    let variables = &config.model.template_variables;
    assert_eq!(variables["date_string"].as_str(), Some("1 May"));
    assert_eq!(variables["day"].as_str(), Some("2024-07-26"), "templates know no dates");
    assert_eq!(variables["enable_thinking"].as_bool(), Some(false));
    assert!(variables["builtin_tools"].is_array());
    let again = files.write("all.toml", &to_toml(&config));
    assert_eq!(load(&[again], &[]), Ok(config));
}

#[test]
fn what_a_template_cannot_be_given_is_refused() {
    for (text, key, expected) in [
        ("model.tool_call_format=pythonik", "model.tool_call_format", "did you mean `pythonic`?"),
        ("model.tool_call_format=xml", "model.tool_call_format", "allowed: hermes, llama3, "),
        ("model.template_variables.messages=[]", "model.template_variables.messages", "is set by"),
        ("model.template_variables.a-b=1", "model.template_variables.a-b", "letters, digits and _"),
        ("model.template_variables=3", "model.template_variables", "is a section"),
    ] {
        let fault = fault(text);
        assert!(fault.starts_with(&format!("{key}: ")), "{fault}");
        assert!(fault.contains(expected), "{fault}");
        assert!(fault.ends_with(&format!("(from --set {text})")), "{fault}");
    }
}

#[test]
fn a_wrong_type_names_what_is_expected() {
    for (text, expected) in [
        ("rl.group_size=many", "rl.group_size: invalid type: string \"many\", expected u32"),
        ("rl.group_size=-1", "rl.group_size: invalid value: integer `-1`, expected u32"),
        ("rl.group_size=2.5", "rl.group_size: invalid type: floating point `2.5`, expected u32"),
        ("tasks.calls=3", "tasks.calls: invalid type: integer `3`, expected a sequence"),
        ("schedule.kind=both", "schedule.kind: unknown variant `both`, expected one of"),
        ("rl=3", "rl: is a section; write [rl]"),
        ("rl.group_size.x=3", "rl.group_size: invalid type: map, expected u32"),
    ] {
        let fault = fault(text);
        assert!(fault.starts_with(expected), "{fault}");
    }
}

#[test]
fn values_out_of_range_are_refused() {
    for text in [
        "run.name=a/b",
        "run.name=..",
        "run.name=",
        "run.seed=-1",
        "tasks.calls=[]",
        "tasks.calls=[2, 9]",
        "tasks.demonstrations=0",
        "schedule.sft_steps=0",
        "schedule.cold_start_success=1.5",
        "schedule.cold_start_success=nan",
        "schedule.cold_start_check_every=0",
        "rl.group_size=1",
        "rl.staleness_max=65",
        "rl.temperature=0",
        "rl.learning_rate=inf",
        "rl.clip_low=-0.1",
        "sft.batch=0",
        "optimizer.beta2=1",
        "evaluation.temperature=-1",
        "episode.message_tokens_max=513",
        "episode.seconds_max=0",
        "coordinator.listen=7711",
        "learner.advertise=learner",
        "learner.device=tpu",
        "learner.micro_batch_tokens=256",
        "actor.slots=0",
    ] {
        let key = text.split('=').next().expect("a key");
        let fault = fault(text);
        assert!(fault.starts_with(&format!("{key}: ")), "{fault}");
    }
}

#[test]
fn a_schedule_without_any_step_is_refused() {
    let error = load_overrides(&["schedule.steps=0", "schedule.cold_start_steps_max=0"]);
    assert!(error.expect_err("nothing to train").to_string().contains("nothing would be trained"));
    let rl_alone = ["schedule.kind=sft_then_rl", "schedule.cold_start_steps_max=0"];
    let no_demonstrations = [rl_alone[0], rl_alone[1], "tasks.demonstrations=0"];
    assert!(load_overrides(&no_demonstrations).is_ok());
}

const PHASES: &str = r#"
[schedule]
kind = "phases"
repeat = true
[[schedule.phases]]
name = "explore"
kind = "rl"
steps = 60
until = { all_fail_groups = 32 }
[[schedule.phases]]
name = "repair"
kind = "sft"
steps = 6
learning_rate = 1e-4
[[schedule.phases]]
name = "settle"
kind = "interleave"
until = { metric = "rollout/success", above = 0.6, window = 3 }
"#;

#[test]
fn phases_are_read_in_order_and_survive_their_own_toml() {
    let files = Files::new();
    let config = load(&[files.write("phases.toml", PHASES)], &[]).expect("sound");
    let names: Vec<&str> = config.schedule.phases.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["explore", "repair", "settle"]);
    assert_eq!(config.schedule.phases[0].until.all_fail_groups, 32);
    assert_eq!(config.schedule.phases[2].until.above, Some(0.6));
    let again = files.write("all.toml", &to_toml(&config));
    assert_eq!(load(&[again], &[]), Ok(config.clone()));
    let section = section_to_toml(&config, "schedule");
    assert!(section.starts_with("[schedule]\nkind = \"phases\"\n"), "{section}");
    let section = files.write("schedule.toml", &section);
    assert_eq!(load(&[section], &[]).map(|config| config.schedule), Ok(config.schedule));
}

#[test]
fn faults_of_phases_are_reported_at_once_each_with_its_place() {
    let files = Files::new();
    let text = PHASES
        .replace("all_fail_groups = 32", "all_fail_group = 32")
        .replace("kind = \"sft\"", "kind = \"stf\"")
        .replace("learning_rate = 1e-4", "lerning_rate = 1e-4")
        .replace("rollout/success", "rollout/sucess")
        .replace("name = \"settle\"", "name = \"repair\"");
    let error = load(&[files.write("phases.toml", &text)], &[]).expect_err("faults").to_string();
    for expected in [
        "the configuration has 5 faults",
        "schedule.phases[0].until.all_fail_group: unknown key; did you mean `all_fail_groups`?",
        "schedule.phases[1].kind: unknown variant `stf`, expected one of",
        "schedule.phases[1].lerning_rate: unknown key; did you mean `learning_rate`?",
        "schedule.phases[2].name: is `repair`, the name of an earlier phase too",
        "schedule.phases[2].until.metric: is `rollout/sucess` (did you mean `rollout/success`?)",
        "phases.toml)",
    ] {
        assert!(error.contains(expected), "{expected} is not in\n{error}");
    }
}

#[test]
fn phases_that_cannot_end_or_be_measured_are_refused() {
    for (phases, expected) in [
        ("[]", "schedule.phases: is empty"),
        ("[3]", "schedule.phases[0]: is no table; write [[schedule.phases]]"),
        ("3", "schedule.phases: invalid type: integer `3`, expected a sequence"),
        (
            "[{name = 'a'}, {name = 'b'}]",
            "schedule.phases[0].steps: is 0 and until is empty: the phase never ends",
        ),
        (
            "[{name = 'a', kind = 'sft', until = {metric = 'rollout/success', above = 1.0}}]",
            "schedule.phases[0].until.metric: is `rollout/success`, which only RL steps have",
        ),
        (
            "[{name = 'a', kind = 'sft', until = {all_fail_groups = 1}}]",
            "schedule.phases[0].until.all_fail_groups: counts groups, but the phase has no RL",
        ),
        ("[{name = 'a', until = {above = 1.0}}]", "schedule.phases[0].until.above: is a bound"),
        ("[{name = 'a', until = {metric = 'train/entropy'}}]", "until.metric: has no bound"),
        ("[{name = 'a', until = {above = 'x'}}]", "schedule.phases[0].until.above: invalid type"),
    ] {
        let set = format!("schedule.phases={phases}");
        let error = load_overrides(&["schedule.kind=phases", &set]).expect_err(phases).to_string();
        assert!(error.contains(expected), "{expected} is not in\n{error}");
    }
}

#[test]
fn constants_of_the_controller_must_make_sense_together() {
    for text in [
        "schedule.adaptive.share_max=0.95",
        "schedule.adaptive.share_min=0.6",
        "schedule.adaptive.invalid_call_rate=0",
        "schedule.adaptive.dead_band=nan",
        "schedule.adaptive.hold_steps=0",
    ] {
        let key = text.split('=').next().expect("a key");
        let fault = fault(text);
        assert!(fault.starts_with(&format!("{key}: ")), "{fault}");
    }
    let fault = fault("schedule.adaptive.share_mx=0.5");
    assert!(fault.contains("did you mean `share_max`?"), "{fault}");
}

#[test]
fn rl_alone_needs_neither_demonstrations_nor_a_cold_start() {
    assert!(load_overrides(&["schedule.kind=rl_only", "tasks.demonstrations=0"]).is_ok());
    assert!(load_overrides(&["schedule.kind=adaptive", "tasks.demonstrations=0"]).is_err());
}

#[test]
fn a_live_change_is_checked_like_a_file() {
    let base = load_overrides(&["schedule.steps=70", "rl.group_size=4"]).expect("sound");
    let changed = |texts: &[&str]| {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        change(&base, &texts).map_err(|error| error.to_string())
    };
    let changes = ["schedule.kind=adaptive", "schedule.adaptive.share_max=0.4"];
    let config = changed(&changes).expect("sound");
    assert_eq!(config.schedule.kind, ScheduleKind::Adaptive);
    assert_eq!(config.schedule.adaptive.share_max, 0.4);
    assert_eq!((config.schedule.steps, config.rl.group_size), (70, 4), "the rest stays");
    let found = differences(&base, &config);
    let found: Vec<_> = found.iter().map(|one| (one.key.as_str(), one.after.as_str())).collect();
    let expected = [("schedule.kind", "\"adaptive\""), ("schedule.adaptive.share_max", "0.4")];
    assert_eq!(found, expected);
    assert_eq!(from_toml(&to_toml(&config)).expect("it reads what it writes"), config);
    let live = keys_to_toml(&config, &["schedule.", "rl.learning_rate"]);
    assert!(live.contains("[schedule]") && live.contains("learning_rate"), "{live}");
    assert!(!live.contains("group_size"), "{live}");
    for (texts, expected) in [
        (
            &["schedule.stps=3"][..],
            "schedule.stps: unknown key; did you mean `steps`? (from schedule.stps=3)",
        ),
        (&["schedule.kind=both", "schedule.rl_steps=-1"], "the configuration has 2 faults"),
        (&["steps"], "write KEY=VALUE"),
        (&["schedule.kind=phases"], "schedule.phases: is empty"),
    ] {
        let error = changed(texts).expect_err(expected);
        assert!(error.contains(expected), "{expected} is not in\n{error}");
    }
}

#[test]
fn all_faults_are_reported_at_once_each_with_its_source() {
    let files = Files::new();
    let sound = files.write("sound.toml", "[rl]\ngroup_size = 1\ntemprature = 1.0\n");
    let broken = files.write("broken.toml", "[rl\n");
    let absent = files.0.path().join("absent.toml");
    let overrides = ["learner.device=tpu", "rl.clip_low=x", "no equals sign", ".=1"];
    let error = load(
        &[sound, broken, absent],
        &overrides.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(),
    )
    .expect_err("faults");
    let text = error.to_string();
    for expected in [
        "the configuration has 8 faults",
        "broken.toml: is not TOML:",
        "absent.toml: cannot be read:",
        "--set no equals sign: write KEY=VALUE",
        "--set .=1: write KEY=VALUE",
        "rl.temprature: unknown key; did you mean `temperature`? (from ",
        "rl.clip_low: invalid type: string \"x\", expected f64 (from --set rl.clip_low=x)",
        "rl.group_size: is 1; allowed: 2 to 1024 (from ",
        "sound.toml)",
        "learner.device: is `tpu`; allowed: cpu, cuda (from --set learner.device=tpu)",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
}

#[test]
fn a_key_of_the_wrong_type_is_reported_once() {
    let error = load_overrides(&["rl.group_size=many", "rl.group_size=1.5"]).expect_err("a fault");
    assert_eq!(error.faults.len(), 1, "{error}");
}

#[test]
fn an_external_engine_needs_a_server_that_can_tell_what_training_needs() {
    let engine = |more: &[&str]| {
        let base = ["actor.engine.kind=vllm", "actor.engine.url=\"http://127.0.0.1:8000\""];
        load_overrides(&[&base[..], more].concat()).map_err(|error| error.to_string())
    };
    assert_eq!(engine(&[]).map(|config| config.actor.engine.kind), Ok("vllm".to_owned()));
    for (fault, expected) in [
        ("actor.engine.kind=tgi", "allowed: libtorch, vllm, sglang, ballast"),
        ("actor.engine.url=\"https://engine\"", "https is not spoken"),
        ("actor.engine.logprobs=cooked", "allowed: raw, processed"),
        ("actor.engine.patience_s=0", "actor.engine.patience_s: is 0"),
        ("actor.count=2", "actor.count: is 2, but a vllm server holds the weights of one actor"),
        ("rl.temperature=0.7", "rl.temperature: is 0.7, where raw log-probabilities"),
    ] {
        let error = engine(&[fault]).expect_err(fault);
        assert!(error.contains(expected), "{expected} is not in\n{error}");
    }
    assert!(engine(&["evaluation.temperature=0"]).is_ok(), "greedy tokens are measured raw");
    for server in ["actor.engine.logprobs=processed", "actor.engine.kind=ballast"] {
        assert!(engine(&["rl.temperature=0.7", server]).is_ok(), "{server}");
    }
    assert!(load_overrides(&["rl.temperature=0.7", "actor.count=2"]).is_ok());
}

#[test]
fn a_store_needs_members_that_can_be_reached_and_leases_that_etcd_grants() {
    let kind = "coordinator.store.kind=etcd";
    let addresses = "[\"etcd-0.etcd:2379\", \"http://10.0.0.1:2379\"]";
    let endpoints = format!("coordinator.store.endpoints={addresses}");
    let sound = load_overrides(&[kind, &endpoints, "coordinator.store.lease_s=3"]).expect("sound");
    assert_eq!(sound.coordinator.store.endpoints.len(), 2);
    for (text, expected) in [
        ("endpoints=[]", "endpoints: has 0 members; allowed: 1 to 16"),
        ("endpoints=[\"etcd\"]", "endpoints: holds `etcd`; write HOST:PORT"),
        ("endpoints=[\"etcd:0\"]", "endpoints: holds `etcd:0`; write HOST:PORT"),
        ("endpoints=[\"ftp://etcd:1\"]", "endpoints: holds `ftp://etcd:1`; write HOST:PORT"),
        ("endpoints=[\"https://a:1\", \"b:1\"]", "endpoints: mixes https:// with other addresses"),
        ("lease_s=1", "lease_s: is 1; allowed: 2 to 300"),
        ("lease_s=2.5", "lease_s: invalid type: floating point"),
        ("prefix=", "prefix: is ``; allowed: 1 to 100 of"),
        ("prefix=a b", "prefix: is `a b`; allowed: 1 to 100 of"),
        ("kind=zookeeper", "kind: unknown variant `zookeeper`, expected `embedded` or `etcd`"),
        ("password=secret", "password: unknown key"),
    ] {
        let error = load_overrides(&[kind, &format!("coordinator.store.{text}")]);
        let error = error.expect_err(text).to_string();
        assert!(error.contains(&format!("coordinator.store.{expected}")), "{expected}: {error}");
    }
}

#[test]
fn the_flags_can_be_handed_on() {
    let args = ConfigArgs {
        files: vec!["a.toml".into()],
        overrides: vec!["run.name=x".into()],
        dry_run: true,
    };
    assert_eq!(args.to_args(), ["--config", "a.toml", "--set", "run.name=x"]);
}

proptest::proptest! {
    /// No outside text makes the loader panic.
    #[test]
    fn any_text_is_answered(text in ".{0,80}", key in "[a-z.]{0,20}") {
        let files = Files::new();
        let path = files.write("any.toml", &text);
        drop(load(&[path], &[text.clone(), format!("{key}={text}")]));
    }
}
