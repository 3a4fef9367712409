"""The Python client of segserve.

::

    from segserve_client import Client

    with Client("localhost:8001", model="icnet") as client:
        result = client.segment("street.jpg")
        print(result.mask.shape, result.classes)
        result.save("street.png")
"""

from segserve_client.channel import Tls
from segserve_client.client import Client
from segserve_client.errors import SegserveError
from segserve_client.request import Form
from segserve_client.result import Description, File, Result

__all__ = ["Client", "Description", "File", "Form", "Result", "SegserveError", "Tls"]
