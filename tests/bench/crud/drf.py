"""Django REST framework in one file: a ModelViewSet behind JWT (HS256, the caller's row read at each request)."""

import os
import sys
import uuid
from datetime import UTC, datetime
from urllib.parse import urlsplit

import django
import jwt
from argon2 import PasswordHasher
from django.conf import settings

url = urlsplit(os.environ["BENCH_DATABASE_URL"])
settings.configure(
    SECRET_KEY=os.environ["BENCH_SECRET"],
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    USE_TZ=True,
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "rest_framework"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.path[1:],
            "USER": url.username,
            "PASSWORD": url.password,
            "HOST": url.hostname,
            "PORT": url.port,
            "OPTIONS": {"pool": {"min_size": 2, "max_size": 10}},
        }
    },
    REST_FRAMEWORK={
        "DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.LimitOffsetPagination",
        "PAGE_SIZE": 20,
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    },
)
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402 - only once Django is set up, and so are the others
from django.db import models  # noqa: E402
from django.urls import include, path  # noqa: E402
from rest_framework import authentication, exceptions, permissions, routers, serializers, viewsets  # noqa: E402

passwords = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class Person(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    username = models.TextField(unique=True)
    email = models.TextField(unique=True)
    full_name = models.TextField(null=True)
    role = models.TextField(default="user")
    version = models.IntegerField(default=1)
    password_hash = models.TextField()
    created_at = models.DateTimeField(default=lambda: datetime.now(UTC))
    updated_at = models.DateTimeField(default=lambda: datetime.now(UTC))
    is_authenticated = True

    class Meta:
        app_label = "auth"
        db_table = "people"
        managed = False


class Bearer(authentication.BaseAuthentication):
    def authenticate(self, request):
        _, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            claims = jwt.decode(token, settings.SECRET_KEY, algorithms=["HS256"])
            return Person.objects.get(pk=claims["sub"]), claims
        except (jwt.PyJWTError, Person.DoesNotExist) as error:
            raise exceptions.AuthenticationFailed from error

    def authenticate_header(self, request):
        return "Bearer"


class PersonSerializer(serializers.ModelSerializer):
    password = serializers.CharField(write_only=True, min_length=8, max_length=128)

    class Meta:
        model = Person
        fields = ("id", "username", "email", "full_name", "role", "version", "created_at", "updated_at", "password")
        read_only_fields = ("id", "role", "version", "created_at", "updated_at")

    def create(self, validated):
        password = validated.pop("password")
        return Person.objects.create(password_hash=passwords.hash(password), **validated)


class PersonViewSet(viewsets.ModelViewSet):
    queryset = Person.objects.order_by("created_at")
    serializer_class = PersonSerializer
    authentication_classes = (Bearer,)
    permission_classes = (permissions.IsAuthenticated,)


router = routers.SimpleRouter(trailing_slash=False)
router.register("users", PersonViewSet)
urlpatterns = [path("", include(router.urls))]
application = get_wsgi_application()
sys.modules.setdefault("drf", sys.modules[__name__])
