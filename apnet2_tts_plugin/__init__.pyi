from apnet2_tts_plugin.config import Apnet2Config as Apnet2Config
from apnet2_tts_plugin.errors import Apnet2Error as Apnet2Error
from apnet2_tts_plugin.loader import load_model as load_model
from apnet2_tts_plugin.model import Apnet2 as Apnet2

__version__: str
