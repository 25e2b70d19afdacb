use tch::Device;

use super::*;
use crate::Policy;

const CONFIG: &str = r#"{
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 72,
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "num_key_value_heads": 2, "head_dim": 16,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048,
    "tie_word_embeddings": false, "hidden_act": "silu"
}"#;

/// Weights so large that attention is far from uniform.
fn policy(heads: usize) -> Policy {
    let config = ModelConfig::from_json(CONFIG.replace("HEADS", &heads.to_string()).as_bytes());
    let policy = Policy::random(config.unwrap(), 1, Device::Cpu);
    tch::no_grad(|| {
        let scaled = policy.flat() * 4.0;
        policy.flat().shallow_clone().copy_(&scaled);
    });
    policy
}

fn tokens(count: usize, seed: usize) -> Vec<u32> {
    (0..count).map(|at| ((at * at + 7 * seed + at) % 72) as u32).collect()
}

/// Appends of any lengths, in any order of slots, give what libtorch gives: logits, and the keys and
/// values that later ones build on.
#[test]
fn it_is_the_network_of_libtorch() {
    for (heads, threads) in [(2, 1), (8, 3), (6, 2), (80, 2)] {
        crate::set_threads(threads);
        let policy = policy(heads);
        let (mut ours, mut theirs) = (policy.cache(5, 1400), policy.cache(5, 1400));
        // The third is more than a chunk, and a sequence that ends within one.
        let rounds: [&[(usize, usize)]; 5] = [
            &[(0, 7), (3, 40)],
            &[(0, 1), (3, 1)],
            &[(3, 2), (1, 700), (4, 1), (2, 600), (0, 9)],
            &[(2, 1), (1, 1), (0, 1), (4, 1), (3, 1)],
            &[(1, 97), (0, 1)],
        ];
        for (index, round) in rounds.into_iter().enumerate() {
            let appended: Vec<(usize, Vec<u32>)> =
                round.iter().map(|(slot, count)| (*slot, tokens(*count, index + slot))).collect();
            let appended: Vec<(usize, &[u32])> =
                appended.iter().map(|(slot, tokens)| (*slot, tokens.as_slice())).collect();
            let fast = policy.extend(&mut ours, &appended).unwrap();
            let slow = policy.extend_in_libtorch(&mut theirs, &appended).unwrap();
            let difference = (fast - slow).abs().max().double_value(&[]);
            assert!(difference < 1e-4, "{heads} heads, round {index}: {difference}");
        }
        assert_eq!(ours.lengths, theirs.lengths);
    }
}

/// Whoever writes to the weights, by whatever view, is heard by the next step.
#[test]
fn weights_that_are_written_to_are_laid_out_anew() {
    let policy = policy(2);
    let step = || {
        let mut cache = policy.cache(1, 4);
        policy.extend(&mut cache, &[(0, &[1, 2, 3])]).unwrap()
    };
    let before = step();
    assert!(before.equal(&step()), "nothing was written");
    let writes: [&dyn Fn(); 3] = [
        &|| drop(policy.leaves()[3].shallow_clone().fill_(0.01)),
        &|| drop(policy.flat().shallow_clone().g_mul_scalar_(0.5)),
        &|| {
            let tensors =
                policy.named_tensors().into_iter().map(|(name, tensor)| (name, tensor * 1.5));
            policy.load(&tensors.collect()).unwrap();
        },
    ];
    let mut last = before;
    for write in writes {
        tch::no_grad(write);
        let now = step();
        assert!((&now - &last).abs().max().double_value(&[]) > 1e-3, "the write was not heard");
        let mut cache = policy.cache(1, 4);
        let fresh = policy.extend_in_libtorch(&mut cache, &[(0, &[1, 2, 3])]).unwrap();
        assert!((&now - fresh).abs().max().double_value(&[]) < 1e-4);
        last = now;
    }
}

#[test]
fn a_chunk_is_never_too_long_and_nothing_is_lost() {
    let all = [tokens(300, 1), tokens(212, 2), tokens(1, 3), tokens(1500, 4)];
    let appended: Vec<Appended<'_>> = (0..)
        .zip(&all)
        .map(|(slot, tokens)| Appended { slot, position: slot * 10, tokens })
        .collect();
    let chunks = chunks(&appended);
    let lengths: Vec<usize> =
        chunks.iter().map(|chunk| chunk.iter().map(|piece| piece.tokens.len()).sum()).collect();
    assert_eq!(lengths, [512, 512, 512, 477]);
    for (slot, tokens) in all.iter().enumerate() {
        let pieces: Vec<_> = chunks.iter().flatten().filter(|piece| piece.slot == slot).collect();
        let mut at = slot * 10;
        for piece in &pieces {
            assert_eq!(piece.position, at);
            at += piece.tokens.len();
        }
        let joined: Vec<u32> =
            pieces.iter().flat_map(|piece| piece.tokens.iter().copied()).collect();
        assert_eq!(joined, *tokens);
        let ends: Vec<bool> = pieces.iter().map(|piece| piece.is_end).collect();
        assert!(ends.iter().rev().skip(1).all(|end| !end) && ends.last() == Some(&true));
    }
}
