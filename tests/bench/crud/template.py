"""The structure of the usual FastAPI template: sync SQLModel on psycopg, HS256, the caller's row read at each request."""

import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlmodel import Field, Session, SQLModel, col, create_engine, func, select

SECRET = os.environ["BENCH_SECRET"]
# One connection a thread of the pool: with fewer, threads that wait for one keep those that have one from going on.
engine = create_engine(
    os.environ["BENCH_DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"), pool_size=40, max_overflow=0
)
passwords = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),))
app = FastAPI()


class PersonBase(SQLModel):
    username: str = Field(unique=True, max_length=32)
    email: str = Field(unique=True, max_length=254)
    full_name: str | None = Field(default=None, max_length=128)


class Person(PersonBase, table=True):
    __tablename__ = "people"
    id: uuid.UUID = Field(default_factory=uuid.uuid7 if hasattr(uuid, "uuid7") else uuid.uuid4, primary_key=True)
    role: str = "user"
    version: int = 1
    password_hash: str
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class PersonCreate(PersonBase):
    password: str = Field(min_length=8, max_length=128)


class PersonPublic(PersonBase):
    id: uuid.UUID
    role: str
    version: int
    created_at: datetime
    updated_at: datetime


class PeoplePublic(SQLModel):
    data: list[PersonPublic]
    count: int


def get_session() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


SessionDep = Annotated[Session, Depends(get_session)]
TokenDep = Annotated[str, Depends(OAuth2PasswordBearer("/auth/token"))]


def get_current(session: SessionDep, token: TokenDep) -> Person:
    try:
        claims = jwt.decode(token, SECRET, algorithms=["HS256"])
    except jwt.PyJWTError as error:
        raise HTTPException(403, "could not validate credentials") from error
    found = session.get(Person, uuid.UUID(claims["sub"]))
    if found is None:
        raise HTTPException(404, "user not found")
    return found


CurrentDep = Annotated[Person, Depends(get_current)]


def get_admin(current: CurrentDep) -> Person:
    if current.role != "admin":
        raise HTTPException(403, "not enough privileges")
    return current


@app.get("/users/{person_id}", response_model=PersonPublic)
def read(person_id: uuid.UUID, session: SessionDep, current: CurrentDep):
    found = session.get(Person, person_id)
    if found == current:
        return found
    if current.role != "admin":
        raise HTTPException(403, "not enough privileges")
    if found is None:
        raise HTTPException(404, "user not found")
    return found


@app.get("/users", response_model=PeoplePublic, dependencies=[Depends(get_admin)])
def page(session: SessionDep, skip: int = 0, limit: int = 100):
    count = session.exec(select(func.count()).select_from(Person)).one()
    found = session.exec(select(Person).order_by(col(Person.created_at)).offset(skip).limit(limit)).all()
    return PeoplePublic(data=[PersonPublic.model_validate(person) for person in found], count=count)


@app.post("/users", response_model=PersonPublic, status_code=201, dependencies=[Depends(get_admin)])
def create(session: SessionDep, body: PersonCreate):
    if session.exec(select(Person).where(Person.email == body.email)).first():
        raise HTTPException(400, "this email exists")
    made = Person.model_validate(body, update={"password_hash": passwords.hash(body.password)})
    session.add(made)
    session.commit()
    session.refresh(made)
    return made
