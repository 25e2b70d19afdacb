// Throwaway experiment harness.
use ballast_arena::{Environment, Expert, ExpertAction, open, task};
use ballast_chat::{Renderer, Tokenizer, parse_message};
use ballast_learner::{
    algorithm::*, loss::Clip, new_model::*, optimizer::*, train::*, worker::load_policy,
};
use ballast_policy::*;
use std::{path::Path, time::Instant};

struct Ep {
    env: Box<dyn Environment>,
    ids: Vec<u32>,
    mask: Vec<f32>,
    lp: Vec<f32>,
    msg: Vec<u32>,
    pending: Vec<u32>,
    sampler: Sampler,
    done: bool,
    success: bool,
    calls: u32,
    bad: u32,
    kind: u32,
    turns: u32,
}

fn demo(r: &Renderer, world: &str, split: &str, seed: u64, calls: u32) -> TrainingSample {
    let mut env = open(&task(world, split, seed, calls)).unwrap();
    let (mut ids, mut mask) = (vec![], vec![]);
    for s in r.opening(env.tools(), env.prompt()).unwrap() {
        mask.extend(s.loss_mask.iter().map(|m| *m as f32));
        ids.extend(s.token_ids);
    }
    let mut ex = env.expert();
    let mut last = None;
    loop {
        let h = r.assistant_header();
        ids.extend(h);
        mask.resize(ids.len(), 0.0);
        let act = ex.next(last.as_ref());
        let (m, call) = match &act {
            ExpertAction::Answer(t) => (r.assistant_message(t, &[]).unwrap(), None),
            ExpertAction::Call { name, arguments } => (
                r.assistant_message("", &[(name, arguments)]).unwrap(),
                Some((name.clone(), arguments.clone())),
            ),
        };
        ids.extend(&m);
        mask.resize(ids.len(), 1.0);
        ids.extend(r.assistant_trailer());
        mask.resize(ids.len(), 0.0);
        let Some((n, a)) = call else { break };
        let o = env.call(&n, &a).unwrap();
        let s = r.tool_results(&[o.to_text()]).unwrap();
        ids.extend(&s.token_ids);
        mask.resize(ids.len(), 0.0);
        last = o.into_result();
    }
    let n = ids.len();
    TrainingSample {
        token_ids: ids,
        mask,
        advantages: vec![0.0; n],
        behavior_logprobs: vec![0.0; n],
        on_policy: false,
    }
}

fn play(
    p: &Policy,
    r: &Renderer,
    tk: &Tokenizer,
    specs: &[(&str, u64, u32, u64)],
    temp: f32,
) -> Vec<Ep> {
    let mut eps: Vec<Ep> = specs
        .iter()
        .map(|(split, seed, calls, ss)| {
            let env = open(&task("market", split, *seed, *calls)).unwrap();
            let (mut ids, mut mask) = (vec![], vec![]);
            for s in r.opening(env.tools(), env.prompt()).unwrap() {
                mask.resize(mask.len() + s.token_ids.len(), 0.0);
                ids.extend(s.token_ids);
            }
            ids.extend(r.assistant_header());
            mask.resize(ids.len(), 0.0);
            let n = ids.len();
            Ep {
                env,
                pending: ids.clone(),
                ids,
                mask,
                lp: vec![0.0; n],
                msg: vec![],
                sampler: Sampler::new(*ss, temp),
                done: false,
                success: false,
                calls: 0,
                bad: 0,
                kind: *calls,
                turns: 0,
            }
        })
        .collect();
    let slots = eps.len().min(64);
    let cap = 512;
    let mut cache = KvCache::new(p.config(), slots, cap, tch::Device::Cpu);
    let mut in_slot: Vec<Option<usize>> = vec![None; slots];
    let mut next = 0;
    let end = tk.control().im_end;
    loop {
        for s in 0..slots {
            if in_slot[s].is_none() && next < eps.len() {
                in_slot[s] = Some(next);
                cache.clear(s);
                next += 1;
            }
        }
        let active: Vec<(usize, usize)> =
            in_slot.iter().enumerate().filter_map(|(s, e)| e.map(|e| (s, e))).collect();
        if active.is_empty() {
            break;
        }
        let app: Vec<(usize, &[u32])> =
            active.iter().map(|(s, e)| (*s, eps[*e].pending.as_slice())).collect();
        let logits = p.extend(&mut cache, &app).unwrap();
        let mut by: Vec<Option<&mut Ep>> = eps.iter_mut().map(Some).collect();
        let mut rows: Vec<&mut Ep> = active.iter().map(|(_, e)| by[*e].take().unwrap()).collect();
        let mut sam: Vec<&mut Sampler> = rows.iter_mut().map(|e| &mut e.sampler).collect();
        let draws = Sampler::draw(&mut sam, &logits, &[]);
        drop(sam);
        for (e, d) in rows.iter_mut().zip(draws) {
            e.ids.push(d.token);
            e.mask.push(1.0);
            e.lp.push(d.logprob);
            e.msg.push(d.token);
            e.pending = vec![d.token];
            if d.token == end {
                let m = parse_message(tk, &e.msg);
                e.msg.clear();
                e.turns += 1;
                if m.calls.is_empty() {
                    e.success = e.env.score(Some(&m.text)).unwrap().success;
                    e.done = true;
                } else {
                    let mut res = vec![];
                    for c in &m.calls {
                        e.calls += 1;
                        if c.malformed {
                            e.bad += 1;
                            res.push("{\"error\": \"malformed call\"}".to_owned());
                        } else {
                            res.push(e.env.call(&c.name, &c.arguments).unwrap().to_text());
                        }
                    }
                    let mut f: Vec<u32> = r.assistant_trailer().to_vec();
                    f.extend(r.tool_results(&res).unwrap().token_ids);
                    f.extend(r.assistant_header());
                    e.pending.extend(&f);
                    e.ids.extend(&f);
                    e.mask.resize(e.ids.len(), 0.0);
                    e.lp.resize(e.ids.len(), 0.0);
                }
            } else if e.msg.len() >= 48 {
                e.done = true;
            }
            if e.turns >= 8 || e.ids.len() + 8 >= cap {
                e.done = true;
            }
        }
        drop(rows);
        drop(by);
        for (s, e) in active {
            if eps[e].done {
                in_slot[s] = None;
            }
        }
    }
    eps
}

fn eval(
    p: &Policy,
    r: &Renderer,
    tk: &Tokenizer,
    split: &str,
    n: u64,
    calls: &[u32],
    temp: f32,
) -> (f64, Vec<String>, f64) {
    let t = Instant::now();
    let specs: Vec<_> = (0..n).map(|i| (split, i, calls[i as usize % calls.len()], i)).collect();
    let eps = play(p, r, tk, &specs, temp);
    let per: Vec<String> = (1..=5)
        .map(|k| {
            let v: Vec<_> = eps.iter().filter(|e| e.kind == k).collect();
            format!(
                "{}:{:.2}",
                k,
                v.iter().filter(|e| e.success).count() as f64 / v.len().max(1) as f64
            )
        })
        .collect();
    (eps.iter().filter(|e| e.success).count() as f64 / n as f64, per, t.elapsed().as_secs_f64())
}

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let get =
        |k: &str, d: &str| a.iter().position(|x| x == k).map_or(d.to_owned(), |i| a[i + 1].clone());
    let f = |k: &str, d: &str| get(k, d).parse::<f64>().unwrap();
    set_threads(f("--threads", "1") as u32);
    let dir = get("--dir", "/tmp/lab/base");
    let dir = Path::new(&dir);
    let seed = f("--seed", "0") as u64;
    if a[1] == "new" {
        let s = Shape {
            vocab_size: 512,
            hidden_size: f("--h", "96") as i64,
            intermediate_size: f("--i", "256") as i64,
            layers: f("--l", "4") as i64,
            heads: f("--heads", "4") as i64,
            kv_heads: f("--kv", "2") as i64,
            head_dim: f("--hd", "32") as i64,
            positions_max: 1024,
        };
        create(dir, "market", &s, seed).unwrap();
    }
    let tk = Tokenizer::from_file(&dir.join("tokenizer.json")).unwrap();
    let r = Renderer::new(tk.clone());
    let policy = load_policy(dir, tch::Device::Cpu).unwrap();
    println!("params {} vocab {}", policy.flat().numel(), tk.vocab_size());
    let calls: Vec<u32> =
        get("--calls", "2,3,4,5").split(',').map(|x| x.parse().unwrap()).collect();
    let dcalls: Vec<u32> = get("--dcalls", "2,3").split(',').map(|x| x.parse().unwrap()).collect();
    let opt = AdamW::new(0.9, f("--b2", "0.95"), f("--wd", "0.0"), Moments::zero(policy.flat()));
    let mut tr = Trainer::new(policy, opt, 1.0, f("--mb", "8192") as usize);
    let steps = f("--steps", "1000") as u64;
    let t0 = Instant::now();
    if a[1] == "new" {
        for k in 1..=5 {
            let d = demo(&r, "market", "train", 3, k);
            println!(
                "calls {k} tokens {} trained {}\n{}",
                d.token_ids.len(),
                d.trained_tokens(),
                if k == 2 { tk.decode(&d.token_ids) } else { String::new() }
            );
        }
    } else if a[1] == "base" {
        let lr = f("--lr", "3e-3");
        let bs = f("--bs", "32") as u64;
        for s in 0..steps {
            let samples: Vec<_> = (0..bs)
                .map(|i| {
                    demo(
                        &r,
                        "market_basics",
                        "train",
                        5_000_000 + s * bs + i,
                        dcalls[i as usize % dcalls.len()],
                    )
                })
                .collect();
            let w = ((s + 1) as f64 / 50.0).min(1.0) * (1.0 - 0.9 * s as f64 / steps as f64);
            let rep = tr.step(&samples, LossKind::CrossEntropy, lr * w);
            if s % 50 == 0 {
                println!(
                    "{s} loss {:.4} gn {:.2} tok/s {:.0} t {:.0}",
                    rep.loss,
                    rep.gradient_norm,
                    rep.processed_tokens / rep.seconds,
                    t0.elapsed().as_secs_f64()
                );
            }
            if s % 250 == 249 || s + 1 == steps {
                let (x, per, t) =
                    eval(tr.policy(), &r, &tk, "validation", 200, &[1, 2, 3, 4, 5], 0.0);
                println!("EVAL {s} {x:.3} {per:?} in {t:.1}s");
                write_weights(
                    &Path::new(&get("--out", "/tmp/lab/base")).join("model.safetensors"),
                    &tr.policy().named_tensors(),
                )
                .unwrap();
            }
        }
    } else {
        // cold start then rl / sft
        let nd = f("--demos", "128") as u64;
        let demos: Vec<_> = (0..nd)
            .map(|i| {
                demo(&r, "market", "train", seed * 100_000 + i, dcalls[i as usize % dcalls.len()])
            })
            .collect();
        let bs = f("--bs", "32") as usize;
        let mut order: Vec<usize> = vec![];
        let mut k = seed;
        let mut pick = move |n: usize| -> Vec<usize> {
            (0..n)
                .map(|_| {
                    if order.is_empty() {
                        order = (0..nd as usize).collect();
                        for i in (1..order.len()).rev() {
                            k = k
                                .wrapping_mul(6364136223846793005)
                                .wrapping_add(1442695040888963407);
                            order.swap(i, (k >> 33) as usize % (i + 1));
                        }
                    }
                    order.pop().unwrap()
                })
                .collect()
        };
        let cold = f("--cold", "60") as u64;
        let target = f("--target", "0.4");
        for s in 0..cold {
            if s % 5 == 0 {
                let (x, per, t) = eval(tr.policy(), &r, &tk, "validation", 128, &calls, 0.0);
                println!("check {s} {x:.3} {per:?} in {t:.1}s t {:.0}", t0.elapsed().as_secs_f64());
                if x >= target {
                    break;
                }
            }
            let b: Vec<_> = pick(bs).into_iter().map(|i| demos[i].clone()).collect();
            tr.step(
                &b,
                LossKind::CrossEntropy,
                f("--clr", "1e-3") * ((s + 1) as f64 / 10.0).min(1.0),
            );
        }
        let (x, per, t) = eval(tr.policy(), &r, &tk, "test", 400, &calls, 0.0);
        println!("AFTER COLD {x:.3} {per:?} in {t:.1}s t {:.0}", t0.elapsed().as_secs_f64());
        let g = f("--g", "8") as u64;
        let p = f("--p", "8") as u64;
        let rl = f("--rl", "4") as u64;
        let sft = f("--sft", "1") as u64;
        let mut gid = 0u64;
        let evalt = f("--eval", "25") as u64;
        let temp = f("--temp", "1") as f32;
        let (mut tp, mut tt) = (0.0, 0.0);
        let mut run = vec![];
        for s in 0..steps {
            if s % (rl + sft) < rl {
                let specs: Vec<_> = (0..p)
                    .flat_map(|i| {
                        let gg = gid + i;
                        let c = calls[((gg.wrapping_mul(0x9E3779B97F4A7C15)
                            ^ seed.wrapping_mul(0xD1B54A32D192ED03))
                            >> 40) as usize
                            % calls.len()];
                        (0..g).map(move |j| {
                            (
                                "train",
                                1_000_000 + seed * 100_000 + gg,
                                c,
                                seed * 1_000_003 + gg * 64 + j,
                            )
                        })
                    })
                    .collect();
                gid += p;
                let t = Instant::now();
                let eps = play(tr.policy(), &r, &tk, &specs, temp);
                tp += t.elapsed().as_secs_f64();
                let mut samples = vec![];
                let mut zero = 0;
                for grp in eps.chunks(g as usize) {
                    let rew: Vec<f32> =
                        grp.iter().map(|e| if e.success { 1.0 } else { 0.0 }).collect();
                    let adv = advantages(&rew, true);
                    if adv.iter().all(|a| *a == 0.0) {
                        zero += 1;
                        continue;
                    }
                    for (e, a) in grp.iter().zip(adv) {
                        samples.push(TrainingSample {
                            token_ids: e.ids.clone(),
                            mask: e.mask.clone(),
                            advantages: e.mask.iter().map(|m| m * a).collect(),
                            behavior_logprobs: e.lp.clone(),
                            on_policy: true,
                        });
                    }
                }
                let ntok: usize = eps.iter().map(|e| e.ids.len()).sum();
                let t = Instant::now();
                let rep = tr.step(
                    &samples,
                    LossKind::PolicyGradient(Clip { low: 0.2, high: f("--high", "0.28") }),
                    f("--lr", "3e-4"),
                );
                tt += t.elapsed().as_secs_f64();
                let suc = eps.iter().filter(|e| e.success).count() as f64 / eps.len() as f64;
                run.push(suc);
                if s % 5 == 0 {
                    let l = run.len().min(5);
                    println!(
                        "{s} succ {suc:.2} avg5 {:.2} zero {zero}/{p} kl {:.1e} ent {:.3} gn {:.2} calls {:.2} bad {} tok {ntok} t {:.0} (play {tp:.0} train {tt:.0})",
                        run[run.len() - l..].iter().sum::<f64>() / l as f64,
                        rep.behavior_kl,
                        rep.entropy,
                        rep.gradient_norm,
                        eps.iter().map(|e| e.calls).sum::<u32>() as f64 / eps.len() as f64,
                        eps.iter().map(|e| e.bad).sum::<u32>(),
                        t0.elapsed().as_secs_f64()
                    );
                }
            } else {
                let b: Vec<_> = pick(bs).into_iter().map(|i| demos[i].clone()).collect();
                let t = Instant::now();
                tr.step(&b, LossKind::CrossEntropy, f("--slr", "1e-4"));
                tt += t.elapsed().as_secs_f64();
            }
            if s % evalt == evalt - 1 {
                let (x, per, t) = eval(tr.policy(), &r, &tk, "validation", 128, &calls, 0.0);
                println!("  eval {s} {x:.3} {per:?} in {t:.1}s");
            }
        }
        let (x, per, t) = eval(tr.policy(), &r, &tk, "test", 400, &calls, 0.0);
        println!("FINAL {x:.3} {per:?} in {t:.1}s t {:.0}", t0.elapsed().as_secs_f64());
    }
}
