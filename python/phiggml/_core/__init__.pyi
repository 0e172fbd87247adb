from phiggml._core import gguf as gguf
from phiggml._core import model as model
from phiggml._core import pipeline as pipeline
from phiggml._core import placement as placement
from phiggml._core import quant as quant
from phiggml._core import recipe as recipe
from phiggml._core import runtime as runtime
from phiggml._core import session as session
