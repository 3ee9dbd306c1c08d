import io

import numpy as np

from trainer.tables import write_csv


def written(*pieces):
    file = io.BytesIO()
    write_csv(file, pieces)
    return file.getvalue().decode()


def test_arrays_become_columns():
    table = {"row": np.array([3, 4]), "p": np.array([[0.5], [1 / 3]]), "q": np.arange(8).reshape(2, 2, 2), "name": np.array(["a,b", "é"])}
    assert written(table) == ('row,p,q_0_0,q_0_1,q_1_0,q_1_1,name\r\n3,0.5,0,1,2,3,"a,b"\r\n4,0.333333333,4,5,6,7,é\r\n')


def test_pieces_follow_one_another():
    assert written({"x": np.array([1])}, {"x": np.array([2, 3])}) == "x\r\n1\r\n2\r\n3\r\n"


def test_what_is_too_wide_is_left_out():
    assert written({"x": np.zeros(1, int), "y": np.zeros([1, 1001]), "z": np.zeros([1, 1000])}).startswith("x,z_0,z_1,")


def test_numbers_have_the_digits_of_a_float32():
    value = np.float32(1) / 3
    assert np.float32(written({"x": np.array([value])}).split()[1]) == value
