//! Products against plain ones in `f64`: exact as they are said to be, gated, packed for the next, of 8-bit weights.

#![allow(clippy::unwrap_used)]
use half::f16;

use super::*;
use crate::synthetic;

/// The product in `f64`, and the sum of its terms' sizes.
fn plain(x: &[f32], weights: &[f32], inputs: usize) -> Vec<(f64, f64)> {
    let dot = |a: &[f32], b: &[f32]| {
        let terms = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
    };
    x.chunks_exact(inputs).flat_map(|x| weights.chunks_exact(inputs).map(move |w| dot(x, w))).collect()
}

fn check(weights: &Weights, values: &[f32], exactness: Exactness, tolerance: f64) {
    let inputs = weights.inputs;
    for rows in [1, 2, 16, 17, 31, 32, 33, 100, 300] {
        let x = synthetic::values("7", rows * inputs, 0.0, 1.0);
        let mut out = vec![f32::NAN; rows * weights.outputs];
        weights.multiply(&Rows::pack(&x, inputs, exactness), &mut out);
        for (i, (got, (expected, size))) in out.iter().zip(plain(&x, values, inputs)).enumerate() {
            let error = (f64::from(*got) - expected).abs() / size;
            assert!(error < tolerance, "{rows} rows, {i}: {got} is not {expected}");
        }
        // Each row alone gives the same bits.
        for row in [0, rows / 2, rows - 1] {
            let mut alone = vec![0f32; weights.outputs];
            let x = &x[row * inputs..(row + 1) * inputs];
            weights.multiply(&Rows::pack(x, inputs, exactness), &mut alone);
            assert_eq!(alone, out[row * weights.outputs..(row + 1) * weights.outputs]);
        }
    }
}

#[test]
fn products_are_as_exact_as_they_are_said_to_be() {
    for (outputs, inputs) in [(16, 32), (1, 1), (7, 40), (48, 64), (100, 96), (129, 2100), (260, 33)] {
        let values = synthetic::values("3", outputs * inputs, 0.0, 1.0);
        let rounded: Vec<f32> = values.iter().map(|x| round(*x).to_f32()).collect();
        let split = Weights::pack(&values, inputs, Exactness::Exact);
        assert!(matches!(split.form, Form::Split { .. }));
        check(&split, &values, Exactness::Exact, 2e-5);
        let whole = Weights::pack(&rounded, inputs, Exactness::Exact);
        assert!(matches!(whole.form, Form::Whole(_)));
        check(&whole, &rounded, Exactness::Exact, 2e-5);
        check(&Weights::pack(&values, inputs, Exactness::Rounded), &values, Exactness::Rounded, 8e-3);
        let mut row = vec![0f32; inputs];
        whole.copy_row(outputs - 1, &mut row);
        assert_eq!(row, rounded[(outputs - 1) * inputs..]);
    }
}

#[test]
fn gated_products_are_the_products_gated() {
    let f = |x: f32| x.max(0.1) + 0.5 * x;
    for (half, inputs) in [(16, 32), (48, 70), (160, 2048)] {
        let weights = Weights::pack(&synthetic::values("4", 2 * half * inputs, 0.0, 1.0), inputs, Exactness::Exact);
        assert!(weights.can_be_gated());
        for rows in [1, 16, 33, 300] {
            let x = synthetic::values("9", rows * inputs, 0.0, 1.0);
            let (mut plain, mut gated) = (vec![0f32; rows * 2 * half], vec![f32::NAN; rows * half]);
            let x = Rows::pack(&x, inputs, Exactness::Exact);
            weights.multiply(&x, &mut plain);
            weights.multiply_gated(&x, f, &mut gated);
            for (plain, gated) in plain.chunks_exact(2 * half).zip(gated.chunks_exact(half)) {
                let expected: Vec<f32> = (0..half).map(|i| f(plain[i]) * plain[half + i]).collect();
                assert!(gated.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs().max(1.0)));
            }
        }
    }
    assert!(!Weights::pack(&synthetic::values("1", 40 * 64, 0.0, 1.0), 64, Exactness::Exact).can_be_gated());
    assert!(!Weights::pack(&synthetic::values("1", 32 * 2080, 0.0, 1.0), 2080, Exactness::Exact).can_be_gated());
}

#[test]
fn products_packed_for_the_next_product_are_the_products() {
    let f = |row: &mut [f32], column: usize| {
        for (i, x) in row.iter_mut().enumerate() {
            *x = x.max(0.1) + (column + i) as f32 * 0.01;
        }
    };
    for (inputs, inner, outputs) in [(32, 64, 16), (70, 45, 33), (2080, 160, 40)] {
        let up = Weights::pack(&synthetic::values("4", inner * inputs, 0.0, 0.1), inputs, Exactness::Exact);
        let down = Weights::pack(&synthetic::values("6", outputs * inner, 0.0, 1.0), inner, Exactness::Exact);
        for rows in [1, 16, 33, 300] {
            let x = synthetic::values("9", rows * inputs, 0.0, 1.0);
            let (x, mut inside) = (Rows::pack(&x, inputs, Exactness::Exact), vec![0f32; rows * inner]);
            up.multiply(&x, &mut inside);
            inside.chunks_exact_mut(inner).for_each(|row| f(row, 0));
            let (mut apart, mut packed) = (vec![0f32; rows * outputs], vec![f32::NAN; rows * outputs]);
            down.multiply(&Rows::pack(&inside, inner, Exactness::Exact), &mut apart);
            down.multiply(&up.multiply_packed(&x, Exactness::Exact, f), &mut packed);
            assert!(apart.iter().zip(&packed).all(|(a, b)| (a - b).abs() <= 1e-4 * a.abs().max(1.0)), "{inner}");
        }
    }
}

#[test]
fn eight_bit_weights_are_widened() {
    for (outputs, inputs) in [(16, 32), (5, 64), (70, 2112)] {
        let mut blocks = Vec::new();
        let mut values = Vec::new();
        for (i, scale) in synthetic::values("5", outputs * inputs / 32, 0.0, 1.0).into_iter().enumerate() {
            let scale = f16::from_f32(scale * 0.01);
            blocks.extend(scale.to_le_bytes());
            for j in 0..32 {
                let number = ((i * 31 + j * 57) % 255) as i32 - 127;
                blocks.extend((number as i8).to_le_bytes());
                values.push(number as f32 * scale.to_f32());
            }
        }
        let weights = Weights::pack_q8(&blocks, inputs).unwrap();
        check(&weights, &values, Exactness::Exact, 2e-5);
        check(&weights, &values, Exactness::Rounded, 8e-3);
        let mut row = vec![0f32; inputs];
        weights.copy_row(outputs - 1, &mut row);
        assert_eq!(row, values[(outputs - 1) * inputs..]);
    }
    assert!(Weights::pack_q8(&[0; 33], 32).is_none());
}
