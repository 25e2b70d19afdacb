use tch::{Device, Kind, Tensor};

use super::*;
use crate::cpu::element::{Bf16, elements};

/// libtorch's attention of one row: the same in a few operations.
fn reference(query: &Tensor, keys: &Tensor, values: &Tensor, row: Row) -> Tensor {
    let [kv_heads, group] = [keys.size()[1], query.size()[0] / keys.size()[1]];
    let dim = query.size()[1];
    let of = |table: &Tensor| {
        let held = table.get(row.slot as i64).narrow(1, 0, row.keys as i64);
        held.to_kind(Kind::Float)
    };
    let query = query.view([kv_heads, group, dim]);
    let scores = query.matmul(&of(keys).transpose(1, 2)) / (dim as f64).sqrt();
    scores.softmax(-1, None).matmul(&of(values)).reshape([-1])
}

fn check<E: Element>(heads: i64, kv_heads: i64, dim: i64) {
    tch::manual_seed(dim);
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let rows = [(3, 300), (0, 1), (1, 7), (4, 137)].map(|(slot, keys)| Row { slot, keys });
    let table = || random(&[5, kv_heads, 300, dim]).to_kind(E::KIND);
    let (keys, values, query) = (table(), table(), random(&[4, heads, dim]) * 2.0);
    let reading = Reading::<E> {
        kv_heads: kv_heads as usize,
        group: (heads / kv_heads) as usize,
        dim: dim as usize,
        capacity: 300,
        keys: elements(&keys),
        values: elements(&values),
        queries: elements(&query),
    };
    for threads in [1, 3] {
        let team = Team::new(threads);
        let mut out = vec![0.0; (4 * heads * dim) as usize];
        attend(&team, reading, &rows, &mut out);
        let out = Tensor::from_slice(&out).view([4, -1]);
        for (index, row) in rows.into_iter().enumerate() {
            let expected = reference(&query.get(index as i64), &keys, &values, row);
            let difference = (out.get(index as i64) - expected).abs().max().double_value(&[]);
            assert!(difference < 2e-6, "{:?} D {dim}, {row:?}: {difference}", E::KIND);
        }
    }
}

#[test]
fn it_is_the_attention_of_libtorch() {
    for dim in [16, 64, 128, 80, 24, 6] {
        check::<f32>(4, 2, dim);
    }
    check::<f32>(6, 6, 32);
    check::<f32>(8, 1, 32);
    check::<Bf16>(4, 2, 64);
}

#[test]
fn wide_registers_change_the_last_bits_at_most() {
    for dim in [16, 64, 6, 20] {
        let numbers = |scale: f32| move |at: usize| (at as f32 * 0.37).sin() * scale;
        let queries: Vec<f32> = (0..2 * dim).map(numbers(2.0)).collect();
        let keys: Vec<f32> = (0..2 * 29 * dim).map(numbers(1.0)).collect();
        let rows = [Row { slot: 1, keys: 29 }];
        let reading = Reading {
            kv_heads: 1,
            group: 2,
            dim,
            capacity: 29,
            keys: &keys[..],
            values: &keys[..],
            queries: &queries,
        };
        let (mut fast, mut plain) = (vec![0.0; 2 * dim], vec![0.0; 2 * dim]);
        vectorised(HeadsOfRows { reading, rows: &rows, first: 0, out: &mut fast });
        HeadsOfRows { reading, rows: &rows, first: 0, out: &mut plain }.run::<false>();
        for (fast, plain) in fast.iter().zip(&plain) {
            assert!((fast - plain).abs() < 1e-6, "D {dim}: {fast} {plain}");
        }
    }
}
